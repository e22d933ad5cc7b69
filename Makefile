# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
# Installed first, so that it can be any build that suits the machine, for example
#   make demo TORCH="torch==2.13.0 --index-url <the index of the CPU or CUDA builds>"
TORCH  ?= torch==2.13.0

bin := $(VENV)/bin
pip := $(bin)/python -m pip --quiet --disable-pip-version-check

# Two test files at a time: much of what they do is waiting for trainings and daemons. A process that crashes
# ends the whole: were it replaced, the rest would be waited for in vain.
TWO := -n 2 --dist loadfile --max-worker-restart 0
# What runs where there is no torch.
BASE := $(addprefix tests/unit/,cli client daemon detect export policy series tui wire)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check check-base package bench pictures reference clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## a real training that goes wrong, watched (FAULT=lr_spike, ARGS="--headless …")
	@echo "==> optwatch demo: a real training with a fault, its daemon, and the terminal UI where there is a terminal"
	@$(bin)/optwatch demo $(if $(FAULT),--fault $(FAULT)) $(ARGS)
	@echo "==> to go on: source $(bin)/activate, then optwatch --help; README.md shows the one line for your own script"

test: $(VENV)/developed ## the fast test suite
	@echo "==> the fast test suite (make test-slow: the long one; make check: with lint and types)"
	@$(bin)/python -m pytest $(TWO)

test-slow: $(VENV)/developed ## the long suites as well, with other optimizers and the frameworks
	@$(pip) install --group optimizers --group integrations
	@$(bin)/python -m pytest -m 'slow or not slow' --hypothesis-profile=search

check: $(VENV)/developed ## what CI runs: format, lint, types, import contracts, tests
	@echo "==> format and lint"
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@echo "==> types"
	@$(bin)/mypy
	@echo "==> import contracts"
	@PYTHONPATH=.:agent:tui $(bin)/lint-imports
	@echo "==> tests"
	@$(bin)/python -m pytest $(TWO)

check-base: ## the parts that need no torch, on another Python (PYTHON=python3.13), or with LOWEST=1 the oldest packages
	@$(PYTHON) -m venv --clear $(VENV)-base
	@$(VENV)-base/bin/python -m pip --quiet --disable-pip-version-check install --upgrade 'pip>=25.1'
	@$(VENV)-base/bin/python -m pip --quiet --disable-pip-version-check install --group tests \
		$(if $(LOWEST),--constraint tests/lowest.txt) --editable '.[tui,tensorboard,metrics,otel,notify]'
	@$(VENV)-base/bin/python -m pytest $(BASE)

package: ## sdist and wheel in dist/, checked, and the wheel tried in a clean environment
	@rm -rf dist
	@$(PYTHON) -m venv --clear $(VENV)-package
	@$(VENV)-package/bin/python -m pip --quiet --disable-pip-version-check install build twine mypy
	@$(VENV)-package/bin/python -m build --outdir dist .
	@$(VENV)-package/bin/twine check --strict dist/*
	@$(VENV)-package/bin/python -m tests.package dist/*.whl

bench: $(VENV)/developed ## what the agent costs a training step
	@$(bin)/python -m tests.benchmarks.overhead

pictures: $(VENV)/developed ## take the README's pictures anew, of a real run (about a minute)
	@$(bin)/python -m tests.pictures

reference: $(VENV)/developed ## write examples/reference anew, from the code
	@$(bin)/python -m tests.reference

clean: ## remove the virtual environment
	rm -rf $(VENV)

# Stamp files: nothing is installed again until what it is made from has changed.
$(VENV)/torch:
	@echo "==> a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "optwatch needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(pip) install --upgrade 'pip>=25.1'
	@echo "==> installing $(TORCH) (set TORCH for another build or version)"
	@$(pip) install $(TORCH)
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml
	@echo "==> installing optwatch with all its extras"
	@$(pip) install --editable '.[all]'
	@touch $@

$(VENV)/developed: $(VENV)/installed
	@echo "==> installing what the tests and checks need"
	@$(pip) install --group dev
	@touch $@
