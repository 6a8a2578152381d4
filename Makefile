# Everything a newcomer needs: `make demo`, `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-breadth check lint types clean

setup: $(STAMP)

# torch and torchvision come from the registry together, unpinned, so that they match.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/vitune demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: setup lint types
	$(BIN)/python -m pytest -n auto --dist worksteal

# Eight kinds of method on 138 networks; writes docs/backbones.md. A run cut short goes on.
test-breadth: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m breadth tests/breadth/test_breadth.py

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
