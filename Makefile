# Needs Python 3.11, a C++ compiler and the package registries; .venv is made here. docs/how-to/install.md has the details.
SHELL := /bin/bash
PYTHON ?= python3.11
SET ?= test
BIN := .venv/bin

.PHONY: help demo test test-slow docs install install-% lock clean clean-wheels

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: install-demo ## The whole way on a real model, into demo-out/; ARGS="--out DIR ..." are passed to `sqft demo`
	$(BIN)/sqft demo $(ARGS)

test: install-test ## Install everything, then ruff, mypy and pytest (one test: .venv/bin/python -m pytest -k NAME)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --ignore tests/real
	$(BIN)/python -m pytest --durations 10 tests/real

test-slow: install-test ## The tests that `make test` leaves out for their time: a real server under load, two workers, torch.compile
	$(BIN)/python -m pytest -m slow --durations 10

docs: install-test ## Build the documentation into site/; fails on a dead link (read it with: .venv/bin/mkdocs serve)
	$(BIN)/mkdocs build --quiet

install: install-$(SET) ## Only make .venv: SET=demo, or SET=test (everything, the default)

install-%:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "install: $(PYTHON) is missing or \
	older than 3.11: install Python 3.11, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) .ci/install.py $*

lock: install-test ## Write constraints.txt from .venv, after a pin was moved
	@$(PYTHON) .ci/install.py lock

clean: ## Remove .venv, .cache (the prepared model) and what the tools leave; the compiled llama.cpp stays
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@echo "The compiled llama.cpp stays for all checkouts: make clean-wheels removes it."

clean-wheels: ## Remove the compiled llama.cpp, which all checkouts share
	@$(PYTHON) .ci/install.py clean-wheels
