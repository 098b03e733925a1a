"""What is exported is what is named, documented and mentioned."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepclust

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(deepclust.__path__, "deepclust.")
    if not module.name.endswith("__main__")
)
# A data set's file is its module; the command line is no library.
NOT_LISTED = ("deepclust.datasets.", "deepclust.cli")


@pytest.mark.parametrize("name", ["deepclust", *MODULES])
def test_all_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in getattr(module, "__all__", ()):
        thing = getattr(module, exported)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{name}.{exported} has no docstring"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(NOT_LISTED)])
def test_public_definitions_are_exported(name):
    module = importlib.import_module(name)
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    assert defined <= set(module.__all__)


def test_the_door():
    assert set(deepclust.__all__) == {
        "DEC",
        "Autoencoder",
        "__version__",
        "callbacks",
        "datasets",
        "functional",
        "load",
        "metrics",
    }


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md"])
def test_documents_name_the_estimators(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "DEC" in text
    assert "Autoencoder" in text


def imports(code):
    """Modules and names that a piece of Python takes from the library."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "deepclust":
            yield from ((node.module, alias.name) for alias in node.names)


def test_examples_of_the_readme_import_what_there_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    found = [each for block in blocks for each in imports(block)]
    assert ("deepclust", "DEC") in found
    for module, name in found:
        assert name in importlib.import_module(module).__all__


def test_importing_brings_no_extra():
    code = "import sys, deepclust; print({'typer', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
