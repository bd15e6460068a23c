# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGES := client_app server_app strategies conf fedprune hydra_plugins

# Three files at a time, also on two cores: many tests wait for other processes. tests/conftest.py
# spreads those, so `make test` keeps the order.
SIDE_BY_SIDE := --numprocesses 3 --dist loadfile

# Tests and the demo neither phone home nor look at a model hub.
export FLWR_TELEMETRY_ENABLED ?= 0
export HF_HUB_DISABLE_TELEMETRY ?= 1
# Images of Python set it: every process that a test starts would compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-faults test-docker test-fast test-e2e fuzz browser nginx lint format bench doctor model clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fedprune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing (a few minutes on a first run) ..."
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.evaluation: $(VENV)/.developer
	$(PIP) install --constraint constraints.txt --editable '.[dev,eval]'
	@touch $@

install: $(VENV)/.installed ## Create .venv with the pinned dependencies

demo: $(VENV)/.installed ## Prune the embedded model with eight clients through Flower
	$(BIN)/fedprune run experiment=demo

test: lint ## Install, check style, types and imports, run the tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --no-loadscope-reorder

test-slow: $(VENV)/.evaluation ## What `make test` leaves out: more kills, compiled GPU kernels, lm-evaluation-harness
	$(BIN)/python -m pytest -m slow $(SIDE_BY_SIDE)

test-faults: $(VENV)/.developer ## Deployed processes as guides type them, killed, cut off, slow, at once
	$(BIN)/python -m pytest -m faults --numprocesses 2 --dist loadfile

test-docker: $(VENV)/.developer ## Build the images, start a server and three sites in containers (Docker)
	$(BIN)/python -m pytest -m docker

test-fast: $(VENV)/.developer ## Unit tests only
	$(BIN)/python -m pytest tests/unit

fuzz: $(VENV)/.developer ## Feed every reader of received bytes for half an hour
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest tests -k fuzz

test-e2e: $(VENV)/.developer ## The slower tests with Flower's real runtime
	$(BIN)/python -m pytest -m e2e

browser: ## Install Chromium for the test of the report's page (Debian, as root)
	@command -v chromium >/dev/null || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

nginx: ## Install nginx for the tests of the gateway (Debian, as root)
	@{ PATH="$$PATH:/usr/sbin" command -v nginx && command -v envsubst; } >/dev/null || { apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends nginx-light gettext-base >/dev/null; }

lint: $(VENV)/.developer ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

format: $(VENV)/.developer ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.developer ## Measure kernels, votes and the federation's overhead
	$(BIN)/python -m benchmarks

doctor: $(VENV)/.installed ## Check this machine and say what to mend
	$(BIN)/fedprune doctor

model: $(VENV)/.installed ## Train the embedded model again (about 45 minutes)
	$(BIN)/python scripts/train_demo_model.py

clean: ## Delete what make made; your runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
	find $(PACKAGES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
