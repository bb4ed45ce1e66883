# What can be done here. Every target makes .venv when it is missing or pyproject.toml changed, and reuses it.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-board lint bench docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    profile, prune and deploy a small network on this machine"
	@echo "make test    lint, types and tests: ten minutes on two cores"
	@echo "make test-all  the same with the tests that take long, as CI runs them"
	@echo "make test-board  from an emulated Arm board to outputs that equal PyTorch's"
	@echo "make lint    format, lint and types only"
	@echo "make bench   every benchmark in its quick form"
	@echo "make docs    the documentation as a site, in build/site"
	@echo "make clean   remove .venv and caches; runs/ and lut/ stay"

demo: $(VENV)/.installed
	$(RUN) scripts/demo.py

# One thread a process: two test processes already fill the two cores that this is tuned for. Each begins with a half of
# the tests in their order, so that what the tests of a file share is made once, and helps the other when it is done.
# Tests skip without g++-aarch64-linux-gnu, chromium or dataset-fashion-mnist; .ci/run installs them first.
PYTEST := OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

# Builds an emulated Arm board the first time, from Debian's and PyPI's packages.
test-board: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 $(RUN) -m pytest -m board

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

# A leading underscore marks what the benchmarks share.
bench: $(VENV)/.installed-dev
	set -e; for script in $(sort $(wildcard benchmarks/[a-z]*.py)); do $(RUN) $$script --quick; done

# Strictly: a link or an anchor that leads nowhere is an error. The variable silences an advertisement of the theme's.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "open build/site/index.html; for search, serve it: $(RUN) -m http.server --bind 127.0.0.1 -d build/site"

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so that an interrupted installation is taken up again.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "aap-hw needs Python 3.11 to 3.13 and '$(PYTHON)' is not one; name another with: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' cannot make virtual environments; install the module with: sudo apt-get install python3-venv" >&2; exit 1; }
	@command -v g++ >/dev/null || \
	  { echo "g++ is missing, and TVM links compiled networks with it; install it with: sudo apt-get install g++" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(RUN) -m pip install -e '.[docs]'
	touch $@
