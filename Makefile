# Every target sets up what it needs; nothing is installed twice. `make help` lists them.

PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
TORCH := torch==2.13.0
# Where torch comes from, if not from pip's own index; https://download.pytorch.org/whl/cpu has small CPU builds.
TORCH_INDEX ?=
# Device of `make pretrain`: cpu or cuda.
DEVICE ?= cpu
CORPUS ?= data/tiny
# Folders of recordings of people to train on too, if any: the Free Spoken Digit Dataset for `make corpus`,
# orders of Picovoice's speech-to-intent benchmark for `make pretrain`.
DIGITS ?=
ORDERS ?=
RECIPES ?= $(wildcard training/recipes/*.toml)

.DEFAULT_GOAL := help
.PHONY: help install serve peers bench test lint format clean corpus pretrain masks evaluate results samples

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12
	@echo
	@echo '  Variables: PORT=8080 for serve, DEVICE=$(DEVICE) for pretrain, TORCH_INDEX=<url>,'
	@echo '  RECIPES="training/recipes/asr.toml …" for masks, evaluate and results, ARGS="…" for pytest'

install: $(VENV)/.dev ## Virtual environment with everything, for development

serve: $(VENV)/.base ## The service, on http://localhost:8080 (PORT=… moves it)
	@exec $(BIN)/ahamask serve $(if $(PORT),--port $(PORT))

test: $(VENV)/.dev ## All tests but those marked slow
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/.dev ## ruff, ruff format, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Format and sort imports
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

corpus: $(VENV)/.synthesis ## Synthesise the corpus of the embedded model (DIGITS=<folder> adds recorded digits)
	$(BIN)/python -m training.tiny.corpus --out $(CORPUS) $(if $(DIGITS),--digits $(DIGITS))

pretrain: $(VENV)/.dev ## Pretrain the embedded model on the corpus (ORDERS=<folder> adds recorded orders)
	$(BIN)/python -m training.tiny.pretrain --corpus $(CORPUS) --device $(DEVICE) \
		$(if $(ORDERS),--orders $(ORDERS)) $(ARGS)

masks: $(VENV)/.dev ## Train the embedded model's head masks (RECIPES)
	set -e; for recipe in $(RECIPES); do $(BIN)/ahamask train $$recipe; done

evaluate: $(VENV)/.dev ## Measure the head masks of RECIPES, as a table
	$(BIN)/ahamask evaluate $(RECIPES) --table

results: $(VENV)/.dev ## The paper's findings on the embedded model: docs/results.md (ARGS=--force: all anew)
	$(BIN)/python -m training.analysis.results $(RECIPES) $(ARGS)

peers: $(PEERS)/.installed ## What `make bench` compares with: LitServe and transformers' server, in .venv-peers

bench: $(VENV)/.dev ## The service beside its peers: tables and figures in benchmarks/results (ARGS='--quick')
	$(BIN)/python -m benchmarks.run $(ARGS)

samples: $(VENV)/.synthesis ## Synthesise samples/ and their expected answers
	$(BIN)/python -m training.tiny.samples

clean: ## Remove the environment and all caches; data/ and runs/ stay
	rm -rf $(VENV) $(PEERS) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(BIN)/python
	@echo 'Installing torch and what the service needs; this takes a minute or two.'
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.synthesis: $(VENV)/.dev
	$(BIN)/pip install --quiet --editable '.[dev,synthesis]'
	@touch $@

$(PEERS)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed' >&2; exit 1; }
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PEERS)/bin/pip install --quiet --editable . 'litserve>=0.2.19' 'transformers[serving]'
	@touch $@
