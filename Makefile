# The environment is `.venv`, built when a target first needs it and completed when pyproject.toml
# or constraints.txt change. `make PYTHON=python3.12 test` builds it from another interpreter.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
OUTPUT ?= demo_output
PYTEST_ARGS ?= -n auto --dist worksteal
# Folders with code; those that a clone does not have are left out.
CODE := $(wildcard src conversion hub_cards examples benchmarks docs)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test programs test-fast lint format bench docs clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo       segments a photograph with the model in the package, into $(OUTPUT)/"
	@echo "make test       ruff, mypy, every test, and the wheel; installs Chromium and Node.js"
	@echo "make test-fast  the tests that are not slow and need no other programs"
	@echo "make lint       ruff, mypy and the order of imports alone"
	@echo "make format     lets ruff put the code in order"
	@echo "make bench      the figures that README and docs quote and that need no scenes; takes hours"
	@echo "make docs       the documentation as pages, into site/; needs npm"
	@echo "make clean      removes what was built, the environment too"

# torch comes first and by its exact version: a range could bring a build with gigabytes of CUDA.
$(VENV)/.torch: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet -c constraints.txt -e ".[torch]"
	@touch $@

# The extra says tensorflow; for tests the build without CUDA does, under its own name.
$(VENV)/.test: $(VENV)/.torch
	$(PIP) install --quiet -c constraints.txt tensorflow-cpu keras jax \
		-e ".[torch,export,demo,test,docs]"
	@touch $@

$(VENV)/.docs: $(VENV)/.torch
	$(PIP) install --quiet -c constraints.txt -e ".[torch,docs]"
	@touch $@

demo: $(VENV)/.torch
	$(BIN)/segment-anything demo --output $(OUTPUT)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/python -m tests.floors > /dev/null || $(BIN)/python -m tests.floors

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Node.js may have been installed into the environment, and the tests look for it on the PATH.
test: lint programs
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pytest $(PYTEST_ARGS)

programs: $(VENV)/.test
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.programs

test-fast: $(VENV)/.test
	$(BIN)/pytest -m "not (slow or node or browser)" $(PYTEST_ARGS)

# These need scenes that have to be rendered first.
NEED_SCENES := benchmarks/scaling.py benchmarks/thresholds.py
# keras-hub asks for tensorflow with CUDA by its name; beside tensorflow-cpu it comes without.
bench: $(VENV)/.test
	$(PIP) install --quiet -c constraints.txt -e ".[torch,bench]"
	$(PIP) install --quiet --no-deps keras-hub==0.32.0 kagglehub==1.0.2 kagglesdk==0.1.28
	@for script in $(sort $(filter-out $(NEED_SCENES),$(wildcard benchmarks/[a-z]*.py))); do \
		module=$$(echo $${script%.py} | tr / .); \
		echo "== $$module"; $(BIN)/python -m $$module || exit 1; \
	done

docs: $(VENV)/.docs
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site $(OUTPUT) src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
