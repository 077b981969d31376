# Everything happens in .venv, made on first use and kept while pyproject.toml and
# constraints.txt are unchanged.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: help install demo test bench lab lab-guides clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## make .venv and install mergewise with its development tools

demo: $(READY)  ## train three small models, merge them, compare (OUT=folder, default demo)
	$(BIN)/mergewise demo $(OUT)

test: $(READY)  ## ruff, mypy, pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

bench: $(READY)  ## speed and memory against a plain copy (and mergekit, where installed)
	$(BIN)/python benchmarks/bench.py $(ARGS)

lab: $(READY)  ## real experts, every method: FAMILY=digits DATA=folder SEEDS=n SIZE=cpu|gpu (docs/lab.md)
	$(BIN)/python -m benchmarks.lab $(FAMILY) $(if $(DATA),--data '$(DATA)') \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(SIZE),--size $(SIZE)) $(ARGS)

lab-guides: $(READY)  ## guided against uniform density: FAMILY=digits DATA= SEEDS= SIZE= (docs/lab.md)
	$(BIN)/python -m benchmarks.lab.guides $(FAMILY) $(if $(DATA),--data '$(DATA)') \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(SIZE),--size $(SIZE)) $(ARGS)

clean:  ## remove the demo's output and caches; .venv stays
	rm -rf demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
