# Needs Python 3.11 to 3.13, a C++ compiler and the package registries; the environments are made here. docs/how-to/install.md has the details.
SHELL := /bin/bash
PYTHONS := python3.11 python3.12 python3.13
ifndef PYTHON
PYTHON := $(shell for python in $(PYTHONS); do $$python -c '' 2>/dev/null && echo $$python && break; done)
endif
SET ?= vllm
BIN := .venv/bin
VENV_vllm := .venv
VENV_newest := .venv-newest
VENV_oldest := .venv-oldest

# uv compiles no bytecode: without it each of some hundred processes that the tests start would compile its libraries.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: help demo test test-vllm test-newest test-oldest test-slow check docs install install-% lock clean clean-wheels

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: install-demo ## The whole way on a real model, into demo-out/; ARGS="--out DIR ..." are passed to `sqft demo`
	$(BIN)/sqft demo $(ARGS)

test: install-vllm install-newest check test-vllm test-newest ## Install everything, then ruff, mypy, and the tests with vLLM and with the newest releases

test-vllm: ## The tests with the newest releases that go with vLLM (one test: .venv/bin/python -m pytest -k NAME)
test-newest: ## The tests with the newest releases, without vLLM
test-oldest: ## The tests with the lowest releases that pyproject.toml names, without vLLM

test-newest test-oldest: MARKED := -m "not slow and not once"
# PEFT's own tests say nothing of vLLM: while both lanes of `make test` pin the same PEFT, `newest` alone runs them.
test-vllm: MARKED = $(shell [ "$$(grep ^peft== pins/vllm.txt)" = "$$(grep ^peft== pins/newest.txt)" ] && \
  echo --ignore tests/peft_ext/upstream)
test-vllm test-newest test-oldest: test-%: install-%
	$(VENV_$*)/bin/python -m pytest -n auto --dist worksteal $(MARKED) --ignore tests/real
	$(VENV_$*)/bin/python -m pytest $(MARKED) --durations 10 tests/real

test-slow: install-vllm ## The tests that `make test` leaves out for their time: a real server under load, two workers, torch.compile
	$(BIN)/python -m pytest -m slow --durations 10

check: install-vllm ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install-vllm ## Build the documentation into site/; fails on a dead link (read it with: .venv/bin/mkdocs serve)
	$(BIN)/mkdocs build --quiet

install: install-$(SET) ## Only make .venv: SET=demo, or SET=vllm (everything, the default); SET=newest and SET=oldest make the other two

install-%:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "install: \
	$(if $(PYTHON),$(PYTHON) is missing or older than 3.11,none of $(PYTHONS) runs here): install Python 3.11 to 3.13, or \
	name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) .ci/install.py $*

lock: ## Write pins/*.txt, after pyproject.toml or a pin was changed; ARGS=--upgrade moves every pin to the newest
	@$(or $(PYTHON),python3) .ci/install.py lock $(ARGS)

clean: ## Remove the environments, .cache (the prepared model) and what the tools leave; the compiled llama.cpp stays
	rm -rf .venv .venv-newest .venv-oldest .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@echo "The compiled llama.cpp stays for all checkouts: make clean-wheels removes it."

clean-wheels: ## Remove the compiled llama.cpp, which all checkouts share
	@$(or $(PYTHON),python3) .ci/install.py clean-wheels
