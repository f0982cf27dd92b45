# make quickstart: install, run the whole chain on the embedded digits suite, print the table.
# make test:       install the test extra, run every test. make unit: only the fast ones.
# make test-vllm:  installs vLLM for the CPU into an environment of its own, runs its tests on the real engine.
# make newest:     installs the newest release of every dependency that pip allows, runs a short chain on them.
# make bench:      measures side by side and rewrites docs/benchmarks.md. SHAPE=qwen2.5-vl-3b: at real size, on CUDA.
#                  LAYERS=2: a trial of every part, on any machine; its figures stand apart from those of all layers.
# make rehearse:   runs the chain at a published size with random weights: two layers; LAYERS= for all of them.
#                  SIDE=224 makes images smaller, which is faster on a CPU.
#                  Fails if a stage fails, or takes memory that differs from its estimate by more than WITHIN.
# make docs:       builds the documentation site into build/site, without a network; a warning is an error.
# make check:      what a change must pass before review: style, types, layers of imports, fast tests.
PYTHON ?= python3.11
VENV   ?= .venv
VLLM_VENV ?= .venv-vllm
NEWEST_VENV ?= .venv-newest
OUTPUT ?= runs/quickstart
SHAPE  ?= digits
LAYERS ?= 2
WITHIN ?= 0.15
BIN    := $(VENV)/bin
# make UV=uv TARGET: installs with uv instead of pip.
UV     ?=
ifdef UV
create  = $(UV) venv --quiet --allow-existing --python $(PYTHON) $(1)
install = VIRTUAL_ENV=$(abspath $(1)) $(UV) pip install --quiet
else
create  = $(PYTHON) -m venv $(1)
install = $(1)/bin/python -m pip install --quiet
endif
# make PROCESSES=8 test: on a larger machine. Each process takes one thread.
PROCESSES ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES)

# Images often set it. uv compiles nothing, so every interpreter would compile torch and the tests again, for 20 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart rehearse test test-vllm newest docs bench unit check lint types imports clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call create,$(VENV))
	$(call install,$(VENV)) --constraint constraints.txt --editable '.[train]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(call install,$(VENV)) --constraint constraints.txt --editable '.[test,dev,docs]'
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/dcsft quickstart --output $(OUTPUT)

# From the beginning each time: the folder holds an earlier measurement.
rehearse: $(VENV)/.installed
	rm -rf runs/rehearsal
	$(BIN)/dcsft rehearse --shape $(if $(filter digits,$(SHAPE)),qwen2.5-vl-3b,$(SHAPE)) \
		$(if $(LAYERS),--layers $(LAYERS)) $(if $(SIDE),--side $(SIDE)) \
		$(if $(WITHIN),--within $(WITHIN)) --output runs/rehearsal

# The tests run a short quickstart, unless one is newer than all sources.
test: RAN = $(wildcard $(OUTPUT)/leaderboard/manifest.json)
test: NEWER = $(shell find dcsft_harness tasks models leaderboard -type f -not -name '*.pyc' -newer $(RAN) -print -quit)
test: $(VENV)/.installed-test
	$(if $(RAN),$(if $(NEWER),,DCSFT_QUICKSTART=$${DCSFT_QUICKSTART:-$(abspath $(OUTPUT))})) \
		$(PYTEST) --dist loadfile --no-loadscope-reorder

$(VLLM_VENV)/.installed: constraints-vllm.txt
	$(call create,$(VLLM_VENV))
	$(call install,$(VLLM_VENV)) --no-deps --requirement constraints-vllm.txt
	$(call install,$(VLLM_VENV)) --no-deps --editable .
	touch $@

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m vllm tests/models/test_vllm_real.py

# Never an environment that stands: what is newest changes.
.PHONY: newest-installed newest-run
newest-installed:
	rm -rf $(NEWEST_VENV) build/lib build/bdist.*
	$(call create,$(NEWEST_VENV))
	$(call install,$(NEWEST_VENV)) '.[train]'

newest: newest-installed newest-run

newest-run:
	rm -rf runs/newest
	$(NEWEST_VENV)/bin/dcsft run .ci/newest.yaml --output runs/newest

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks --shape $(SHAPE)$(if $(filter-out file,$(origin LAYERS)),$(if $(LAYERS), --layers $(LAYERS)))

unit: $(VENV)/.installed-test
	$(PYTEST) -m 'not slow' --dist worksteal

docs: $(VENV)/.installed-test
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site

check: lint types imports unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and import-linter cannot follow pyproject's package-dir map: both read the sources through links that are laid
# out as the installed package. Messages name the sources.
LAYOUT := build/types/dcsft_harness

.PHONY: layout
layout:
	rm -rf build/types && mkdir -p $(LAYOUT)
	ln -s $(CURDIR)/dcsft_harness/* $(addprefix $(CURDIR)/,tasks models leaderboard) $(LAYOUT)

types: SHELL := bash
types: $(VENV)/.installed-test layout
	set -o pipefail; cd build/types && \
		$(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p dcsft_harness \
		| sed -E 's#^dcsft_harness/(tasks|models|leaderboard)/#\1/#'

# Imports go one way: the layers in pyproject.toml.
imports: $(VENV)/.installed-test layout
	cd build/types && PYTHONPATH=. $(abspath $(BIN))/lint-imports $(CURDIR)/pyproject.toml --no-cache

clean:
	rm -rf build dist *.egg-info $(VENV) $(VLLM_VENV) $(NEWEST_VENV)
