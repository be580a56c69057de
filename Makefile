PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help bench paper test lint report-check kernels rounds gpu clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

bench: $(VENV)/run.stamp ## run the demo suite on the CPU: a table, figures and a page under out/demo
	$(BIN)/teleport-bench run demo --device cpu --out out

paper: $(VENV)/run.stamp ## every table and figure of the paper at small scale, and what becomes of its claims
	$(BIN)/teleport-bench run paper --scale small --device cpu --out out

test: $(VENV)/test.stamp lint ## lint, types and the whole test suite
	$(BIN)/pytest -n 2 -q

lint: $(VENV)/test.stamp ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

report-check: $(VENV)/run.stamp ## rebuild the committed tables and figures and compare byte for byte
	$(BIN)/teleport-bench report demo --check
	$(BIN)/teleport-bench report paper --scale small --check

kernels: $(VENV)/test.stamp ## time the mixing kernels beside plain copies: results/kernels/MACHINE
	$(BIN)/teleport-bench kernels

rounds: $(VENV)/test.stamp ## time whole rounds beside what one would write: results/rounds/MACHINE
	$(BIN)/teleport-bench rounds

gpu: ## where a CUDA device is, in nine minutes, with PYTHON's packages: tests, benchmarks (OUT=out/gpu)
	$(PYTHON) suites/gpu.py $(or $(OUT),out/gpu)

clean: ## remove the environment and everything that was built, results/ apart
	rm -rf $(VENV) out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is made once, and again when the dependencies change: a second call installs nothing.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, got: $$($(PYTHON) -V 2>&1); try make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "no virtual environment could be made: on Debian and Ubuntu, apt install python3-venv"; exit 2; }

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
