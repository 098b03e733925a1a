"""Options are the fields of DEC: every one of them, with its default and its description."""

from dataclasses import dataclass, fields

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from deepclust import DEC
from deepclust.cli.app import app
from deepclust.cli.options import NOT_OPTIONS, options, parse


def fit_options():
    return {parameter.name: parameter for parameter in get_command(app).commands["fit"].params}


def test_every_field_is_an_option_or_a_named_exception():
    names = {field.name for field in fields(DEC)}
    assert set(NOT_OPTIONS) <= names
    assert {option.name for option in options(DEC)} == names - set(NOT_OPTIONS)
    own = {"data", "output", "columns", "id", "labels", "force", "help"}
    assert set(fit_options()) - own == names - set(NOT_OPTIONS)


def test_options_are_named_like_the_fields():
    for option in options(DEC):
        assert option.flags[0] == f"--{option.name.replace('_', '-')}"
        assert set(fit_options()[option.name].opts) == set(option.flags)
    assert set(fit_options()["n_clusters"].opts) == {"--n-clusters", "-k"}
    assert set(fit_options()["random_state"].opts) == {"--random-state", "--seed"}


def test_every_option_has_a_help_text_in_plain_words():
    for option in options(DEC):
        assert option.help.endswith("."), option.name
        assert "``" not in option.help
        assert ":class:" not in option.help
        assert option.help.split()[0] in DEC.__doc__.replace("``", "").replace('"', "")


def test_defaults_are_those_of_the_fields():
    """Without options, fit makes the estimator that Python makes."""
    given = {option.name: option.default for option in options(DEC)}
    assert DEC(**parse(DEC, given)).get_params() == DEC().get_params()


def test_what_is_given_reaches_the_estimator(monkeypatch, tmp_path):
    seen = {}

    def fit(self, X):
        seen.update(self.get_params(deep=False))
        raise ValueError("enough.")

    monkeypatch.setattr(DEC, "fit", fit)
    monkeypatch.chdir(tmp_path)
    given = ["--hidden", "7,5", "--scaling", "none", "--tol", "0", "--compile", "--init", "k-means"]
    result = CliRunner().invoke(app, ["fit", "digits", "-k", "4", "--seed", "9", *given])
    assert "enough." in result.stderr
    changed = {
        "n_clusters": 4,
        "hidden": (7, 5),
        "scaling": None,
        "tol": 0.0,
        "compile": True,
        "init": "k-means",
        "random_state": 9,
    }
    assert seen == DEC().get_params(deep=False) | changed


def test_words_come_from_the_docstring():
    by_name = {option.name: option for option in options(DEC)}
    assert by_name["init"].words == ("gmm", "k-means")
    assert by_name["scaling"].words == ("unit", "standard", "NUMBER", "none")
    assert by_name["precision"].words == ("auto", "float32", "bfloat16")
    assert by_name["device"].words == ()
    assert by_name["scaling"].value("0.02") == 0.02
    assert by_name["scaling"].value("None") is None
    assert by_name["hidden"].value("5, 6") == (5, 6)
    for name, wrong in [("hidden", ""), ("hidden", "5,"), ("hidden", "-5"), ("init", "none")]:
        with pytest.raises(ValueError, match=f"--{name}"):
            by_name[name].value(wrong)


def test_another_method_brings_its_own_options():
    @dataclass(kw_only=True)
    class Method(DEC):
        """A method.

        Parameters
        ----------
        gamma : float, default=0.1
            Weight of ``x`` [1]_,
            see :class:`~deepclust.DEC`.

        Attributes
        ----------
        gamma_ : float
            Something else.
        """

        gamma: float = 0.1
        shuffle: bool = True

    *same, gamma, shuffle = options(Method)
    assert same == options(DEC)
    assert (gamma.kind, gamma.default, gamma.help) == (float, 0.1, "Weight of x, see DEC.")
    assert shuffle.kind is bool

    @dataclass(kw_only=True)
    class Odd:
        """Odd."""

        table: dict

    with pytest.raises(TypeError, match="table: <class 'dict'> cannot be an option"):
        options(Odd)
