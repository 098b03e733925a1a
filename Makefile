# Needs make and Python 3.11 or newer, nothing else. Another interpreter: make PYTHON=python3.12 demo
PYTHON ?= python3
PYTEST_ARGS ?=
SEEDS ?= 0 1 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s  %s\n", $$1, $$2}' Makefile

demo: $(READY) ## cluster handwritten digits, a minute's look at what this does
	$(BIN)/deepclust demo

test: $(READY) ## run the test suite (options: PYTEST_ARGS="-m slow")
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(READY) ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) ## record the accuracy benchmark, then print its tables (options: SEEDS="0 1 2")
	$(BIN)/python -m benchmarks.accuracy digits usps --seeds $(SEEDS) --skip-unavailable
	$(BIN)/python -m benchmarks.table

clean: ## remove the environment, caches and build output
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is older than what it depends on when the environment has to be brought up to date.
# An environment that was left half made, or whose interpreter is gone, is made anew.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>&1) || found='not there'; \
	  echo "deepclust needs Python 3.11 or newer, but '$(PYTHON)' is $$found;" \
	    "name another interpreter, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[cli,report,parquet,dev]'
	@touch $@
