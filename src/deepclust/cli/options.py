"""Options from an estimator: its fields give names, types and defaults, its docstring the help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

__all__ = ["NOT_OPTIONS", "Option", "options", "parse", "takes_options"]

Command = TypeVar("Command", bound=Callable[..., Any])

NOT_OPTIONS = {
    "autoencoder": "takes a Python object",
    "verbose": "progress is always shown",
}
ALSO = {"n_clusters": ("-k",), "random_state": ("--seed",)}
REQUIRED = ("n_clusters",)  # nobody else can know it


@dataclass(frozen=True)
class Option:
    """A field as an option.

    Attributes
    ----------
    name : str
        Of the field.
    flags : tuple of str
        ``--n-clusters``, ``-k``.
    kind : type
        What typer parses: bool, int, float or str.
    default : object
        In the form typer parses; ``None`` where the field's default is.
    help : str
        From the docstring.
    choices : tuple of str
        The words that are allowed; empty for any text.
    number, none, widths : bool
        Whether a number, the word "none" or a list of whole numbers is allowed.
    """

    name: str
    flags: tuple[str, ...]
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    number: bool = False
    none: bool = False
    widths: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """What may be written, for text options."""
        number, none = ("NUMBER",) * self.number, ("none",) * self.none
        return (*self.choices, *number, *none)

    def parameter(self) -> inspect.Parameter:
        """A parameter of a command, as typer wants it."""
        # What the docstring says of the default is no help where there is none.
        text = re.split("[,;.]", self.help)[0] + "." if self.name in REQUIRED else self.help
        info = typer.Option(
            *self.flags,
            help=text.replace("[", r"\["),  # a bracket opens markup
            show_default=self.default is not None,
            metavar="|".join(self.words) or ("N,N,..." if self.widths else None),
            rich_help_panel=None if self.name in REQUIRED else "Options of the method",
        )
        kind: Any = self.kind | None if self.default is None else self.kind
        default = self.default
        if self.name in REQUIRED:
            kind, default = self.kind, inspect.Parameter.empty
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, info],
        )

    def value(self, given: Any) -> Any:
        """The field's value for what was written.

        Raises
        ------
        ValueError
            For anything that is not allowed.
        """
        if not isinstance(given, str):
            return given
        if self.widths:
            parts = [part.strip() for part in given.split(",")]
            if not all(part.isdecimal() for part in parts):
                raise ValueError(
                    f"{self.flags[0]} {given!r} is no list of whole numbers such as 500,500,2000."
                )
            return tuple(int(part) for part in parts)
        if self.none and given.lower() == "none":
            return None
        if given in self.choices or not self.words:
            return given
        if self.number:
            try:
                return float(given)
            except ValueError:
                pass
        raise ValueError(f"{self.flags[0]} {given!r} is not one of {', '.join(self.words)}.")


def options(estimator: type) -> list[Option]:
    """One option for each field of a dataclass, but those in ``NOT_OPTIONS``.

    Parameters
    ----------
    estimator : type
        A dataclass with a NumPy docstring.

    Returns
    -------
    list of Option
        In the order of the fields.
    """
    hints = get_type_hints(estimator)
    documented = _documented(estimator)
    return [
        _option(field.name, hints[field.name], field.default, *documented.get(field.name, ("", "")))
        for field in fields(estimator)
        if field.name not in NOT_OPTIONS
    ]


def takes_options(estimator: type) -> Callable[[Command], Command]:
    """Decorate a command whose ``**parameters`` stand for the options of an estimator."""

    def decorate(command: Command) -> Command:
        first, *others, _ = inspect.signature(command, eval_str=True).parameters.values()
        generated = {option.name: option.parameter() for option in options(estimator)}
        required = [generated.pop(name) for name in REQUIRED]
        others = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in others]
        parameters = [first, *required, *others, *generated.values()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def parse(estimator: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters from what typer handed over.

    Parameters
    ----------
    estimator : type
        The class whose options they are.
    given : mapping
        Option name to value.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        For a value that is not allowed.
    """
    return {option.name: option.value(given[option.name]) for option in options(estimator)}


def _option(name: str, hint: Any, default: Any, doc_type: str, help: str) -> Option:
    kinds = set(get_args(hint)) if NoneType in get_args(hint) or str in get_args(hint) else {hint}
    flags = (f"--{name.replace('_', '-')}", *ALSO.get(name, ()))
    if any(get_origin(kind) is tuple for kind in kinds):
        return Option(name, flags, str, ",".join(map(str, default)), help, widths=True)
    if str in kinds:
        braces = re.match(r"\{(.*?)\}", doc_type)
        return Option(
            name,
            flags,
            str,
            default,
            help,
            choices=tuple(re.findall(r'"(.+?)"', braces[1])) if braces else (),
            number=float in kinds,
            none=NoneType in kinds,
        )
    if Any in kinds:  # random_state
        return Option(name, flags, int, default, f"{help} Drawn and recorded when not given.")
    for kind in (bool, int, float):
        if kind in kinds:
            return Option(name, flags, kind, default, help)
    raise TypeError(f"{name}: {hint} cannot be an option; say so in NOT_OPTIONS.")


def _documented(estimator: type) -> dict[str, tuple[str, str]]:
    """Type and description of each parameter, from the section "Parameters"."""
    found: dict[str, tuple[str, str]] = {}
    for cls in reversed(estimator.__mro__):
        doc = inspect.cleandoc(vars(cls).get("__doc__") or "")
        section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n--|\Z)", doc, re.M | re.S)
        if section is None:
            continue
        entries = re.finditer(r"^(\w+) : (.+)\n((?:(?:    .*)?\n)*)", section[1] + "\n", re.M)
        for name, kind, text in (entry.groups() for entry in entries):
            found[name] = kind, _plain(text)
    return found


def _plain(text: str) -> str:
    """A description without markup, and without what only Python can pass."""
    text = " ".join(text.split())
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
    text = re.sub(r"\s*\[\d+\]_", "", text)
    text = text.replace("``None``", "none").replace('``"', "").replace('"``', "")
    text = text.replace("``", "")
    return re.sub(r"\s*An array [^.]*\.", "", text)
