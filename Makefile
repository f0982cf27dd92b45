# make quickstart: install, run the whole chain on the embedded digits suite, print the table.
# make test:       install the test extra, run every test. make unit: only the fast ones.
# make check:      what a change must pass before review: style, types, fast tests.
PYTHON ?= python3.11
VENV   ?= .venv
OUTPUT ?= runs/quickstart
BIN    := $(VENV)/bin

.PHONY: quickstart test unit check lint types clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/dcsft quickstart --output $(OUTPUT)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

unit: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile

check: lint types unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info $(VENV)
