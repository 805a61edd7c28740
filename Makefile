# Each target sets up .venv on a fresh machine; nothing else is needed but Python 3.10 to 3.13.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format

demo: .venv/installed
	$(BIN)/uad demo --out demo

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
