# make demo   the whole job on the miniature landmark world, offline, in minutes
# make test   the tests
PYTHON ?= python3
export PYTHONSAFEPATH =
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-cluster lint check bench format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.installed  ## recognition and retrieval on the miniature world, with both scores
	$(BIN)/python recognition.py --demo
	$(BIN)/python retrieval.py --demo

test: $(VENV)/.installed-dev  ## all tests, a few minutes on 2 cores
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-cluster: $(VENV)/.installed-cluster  ## tests of several devices, machines and Dask workers
	$(BIN)/python -m pytest -q tests/test_devices.py tests/test_machines.py tests/test_dask_workers.py

lint: $(VENV)/.installed-dev  ## format and lint, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check: lint test  ## lint and test

bench: $(VENV)/.installed-bench  ## measure all targets, written into benchmarks/README.md
	$(BIN)/python benchmarks/run_all.py

format: $(VENV)/.installed-dev  ## let ruff format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the results, keep the environment
	rm -rf output .pytest_cache .ruff_cache

# pip says errors alone, so the lines before it say what takes so long. It compiles nothing: Python
# does that for what is imported, a fraction (of 48 s of installing 16 less, the first import 7 more).
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile

# Checked before minutes of installing; a .venv of another Python is made anew.
VERSION := import sys; print(*sys.version_info[:2], sep=".")

$(VENV)/.installed: requirements.txt
	@case "$$($(PYTHON) -c '$(VERSION)')" in 3.11|3.12|3.13) ;; *) \
		echo "error: $(PYTHON) is Python $$($(PYTHON) -c '$(VERSION)'); expected 3.11 to 3.13;" \
			"name another one, e.g. make demo PYTHON=python3.12"; exit 1 ;; esac
	@test "$$($(BIN)/python -c '$(VERSION)' 2>&1)" = "$$($(PYTHON) -c '$(VERSION)')" \
		|| $(PYTHON) -m venv --clear $(VENV)
	@echo "installing TensorFlow, Keras and the others into $(VENV): about 600 MB, one to three minutes ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo "installing pytest, ruff and the Kaggle client into $(VENV) ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-cluster: requirements-cluster.txt $(VENV)/.installed-dev
	@echo "installing JAX and Dask into $(VENV): about 400 MB ..."
	@$(PIP) -r requirements-cluster.txt
	@touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed-dev
	@echo "installing the other ways that benchmarks compare with into $(VENV) ..."
	@$(PIP) -r requirements-bench.txt
	@touch $@
