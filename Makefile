# Each target sets up .venv on a fresh machine; nothing else is needed but Python 3.10 to 3.13.
PYTHON ?= python3
BIN := .venv/bin
IN_PARALLEL := --numprocesses auto --dist worksteal

# What the Jetson runs: its Python where there is one, else this one, with its versions and without torch.
PYTHON38 ?= $(firstword $(shell python3.8 -c "import sys; print(sys.executable)" 2>/dev/null) $(wildcard $(HOME)/.pyenv/versions/3.8.*/bin/python) $(PYTHON))
JETSON_TESTS := tests/engines tests/export tests/uad/commands tests/uad/evaluation tests/uad/exporting tests/uad/judging tests/uad/data \
	tests/uad/test_cli.py tests/uad/test_options.py tests/uad/test_progress.py tests/uad/test_tables.py

# What runs on the Jetson, for the last mypy that knows Python 3.8, and for vermin, which knows its library.
ON_JETSON := engines export uad/commands uad/evaluation uad/exporting uad/judging uad/report uad/data/files.py uad/data/folder.py \
	uad/data/defects.py uad/cli.py uad/command_line.py uad/errors.py uad/options.py uad/progress.py uad/tables.py

.PHONY: demo test test-all jetson gpu check format

demo: .venv/installed
	$(BIN)/uad demo --out demo

test: .venv/installed
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow" --longest 5

# Those that train take longer on a slow CPU: a longer limit for each.
test-all: .venv/installed
	$(BIN)/python -m pytest $(IN_PARALLEL) --durations 30 --timeout 600

jetson: .venv-jetson/installed
	.venv-jetson/bin/python --version
	.venv-jetson/bin/python -m pytest $(IN_PARALLEL) -m "not slow" $(JETSON_TESTS)
	.venv-jetson/bin/mypy --config-file= --python-version 3.8 --follow-imports silent --ignore-missing-imports $(ON_JETSON)
	.venv-jetson/bin/vermin --quiet --no-tips --target=3.8- $(ON_JETSON)

# What only an NVIDIA GPU can show, in at most eight minutes. It skips what it lacks, and says so.
gpu: .venv/installed
	$(BIN)/python tests/on_gpu/run.py --out gpu.json

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

.venv-jetson/installed: pyproject.toml docker/jetson-constraints.txt
	$(PYTHON38) -m venv .venv-jetson
	.venv-jetson/bin/python -m pip install --quiet --constraint docker/jetson-constraints.txt \
		numpy pillow onnx onnxruntime scikit-learn scipy pyyaml rich polygraphy pytest pytest-timeout pytest-xdist hypothesis \
		mypy==1.11.2 types-PyYAML vermin==1.6.0
	touch $@
