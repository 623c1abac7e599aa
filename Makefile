# clew: make demo, make test. Both install what they need into .venv and can be run again.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check bench unit setup-demo setup-dev backends lock format clean

# The first interpreter that starts and is new enough; name another with: make PYTHON=/path/to/python3.11
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$candidate && break; done)
BIN := .venv/bin
ARGS ?=

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup-demo setup-dev: setup-%:
	@if [ -z "$(PYTHON)" ]; then \
		echo "clew setup: no Python 3.11 or newer was found: install one, or name it with 'make PYTHON=/path/to/python3.11 demo'." >&2; exit 1; fi
	@$(PYTHON) tools/bootstrap.py $*

demo: setup-demo ## Start the whole demo on the embedded backend; ends with Ctrl-C (ARGS="--once" for a single pass)
	@exec $(BIN)/clew demo $(ARGS)

test: setup-dev ## Check style, types and layers, build the real backends where Go is, and run every test
	@$(BIN)/python tools/verify.py $(ARGS)

check: setup-dev ## Check style, types and layers only
	@$(BIN)/python tools/verify.py --checks-only

bench: setup-dev ## Measure clew beside its peers and write docs/benchmarks.md (ARGS="--only request --quick" for less)
	@$(BIN)/python -m benchmarks $(ARGS)

backends: setup-dev ## Build the Collector, Prometheus, Loki and Jaeger into the cache
	@$(BIN)/python tools/backends.py build

format: setup-dev ## Format the code
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

lock: ## Resolve the dependencies anew (needs uv)
	@tools/lock.sh

clean: ## Remove the virtual environment and what tools left behind
	@rm -rf .venv .clew .coverage* coverage.xml .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
