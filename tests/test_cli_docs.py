"""docs/cli.md knows every command, option and file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from deepclust.cli.app import app
from deepclust.cli.sources import _READERS

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"
COMMANDS = get_command(app).commands


def section(title):
    """Text under a heading, up to the next of its rank."""
    marks, text = title.split()[0], DOCS.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{len(marks)}}} |\Z)", text, re.M | re.S)
    assert found, title
    return found[1]


def test_commands():
    assert set(COMMANDS) == {"demo", "fit", "predict", "evaluate", "datasets"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name):
    text = section(f"## deepclust {name}")
    for parameter in COMMANDS[name].params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            if flag.startswith("-") and flag != "--help":
                assert re.search(rf"`{flag}[` ]", text), flag


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    assert COMMANDS[name].help
    assert not [p.name for p in COMMANDS[name].params if not getattr(p, "help", "")]
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_every_option_of_the_docs_exists():
    flags = {flag for command in COMMANDS.values() for p in command.params for flag in p.opts}
    named = set(re.findall(r"`(--[a-z-]+)", DOCS.read_text(encoding="utf-8")))
    assert named <= flags | {"--version", "--help"}


def test_every_kind_of_file_is_documented():
    for suffix in _READERS:
        assert f"`{suffix}`" in section("## DATA")


def test_everything_in_a_run_is_documented(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 4)))
    np.save(tmp_path / "y.npy", np.arange(30) % 2)
    quick = ["--hidden", "4", "--pretrain-iter", "4", "--max-iter", "4", "--init", "k-means"]
    labels = ["--labels", str(tmp_path / "y.npy")]
    run = tmp_path / "run"
    result = CliRunner().invoke(
        app, ["fit", str(tmp_path / "x.npy"), "-k", "2", *quick, *labels, "-o", str(run)]
    )
    assert result.exit_code == 0, result.output
    for path in run.iterdir():
        title = f"### {path.name}/" if path.is_dir() else f"### {path.name}"
        text = section(title)
        if path.suffix == ".json":
            facts = json.loads(path.read_text())
            keys = {*facts, *facts.get("data", {}), *facts.get("machine", {})}
            keys |= set(facts.get("evidence", {}))
        elif path.suffix == ".jsonl":
            keys = {key for line in path.read_text().splitlines() for key in json.loads(line)}
        elif path.suffix == ".csv":
            keys = set(path.read_text().splitlines()[0].split(","))
        else:
            keys = {child.name for child in path.iterdir() if child.name == "config.json"}
        for key in keys:
            assert f"`{key}`" in text, (path.name, key)
