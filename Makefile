# Development commands. Each target creates .venv first if it is missing.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   ?= workspace/demo
FEDERATION ?= workspace/federation

.PHONY: help install demo federation test test-federation test-fast lint jobs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

install: $(READY)  ## create .venv with all dependencies and this package

demo: $(READY)  ## simulate three sites and a held-out site on the phantom, and print the table
	OMP_NUM_THREADS=1 $(BIN)/nvflare simulator jobs/fedmsa -w $(DEMO) -n 4 -t 4 -l concise

federation: $(READY)  ## run two jobs with a server, three sites and an admin as processes on this machine, over mTLS
	rm -rf $(FEDERATION)
	OMP_NUM_THREADS=1 $(BIN)/fedfms kits federation --job jobs/fedmsa --job jobs/fedsca --out $(FEDERATION)

test: $(READY)  ## all tests except those of test-federation, two files in parallel
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-federation: $(READY)  ## tests with server and sites as processes on this machine
	$(BIN)/python -m pytest -m processes

test-fast: $(READY)  ## the tests that take under a minute together, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not federation and not processes"

lint: $(READY)  ## ruff, its formatter, mypy and the import contracts
	@$(BIN)/python -c "import ruff, mypy, importlinter" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

jobs: $(READY)  ## rebuild the committed jobs from their studies
	$(BIN)/fedfms job build all --study phantom --out jobs

clean:  ## remove workspaces and caches, not .venv
	rm -rf workspace simulator_workspace build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
