# Everything a newcomer needs: `make demo`, `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests start many processes: each would compile vitune anew where the environment forbids bytecode.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-slow test-breadth test-lowest test-federated fuzz browser docs check lint types clean

setup: $(STAMP)

# torch and torchvision come from the registry together, unpinned, so that they match. uv needs a third
# of pip's time; pip takes over where uv cannot install, as from an index that only pip is set up for.
UV := $(BIN)/uv pip install --quiet --python $(VENV) --compile-bytecode
PIP := $(BIN)/python -m pip install --quiet
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	{ $(PIP) uv && $(UV) --upgrade torch torchvision && $(UV) --editable '.[dev]'; } \
		|| { $(PIP) --upgrade torch torchvision && $(PIP) --editable '.[dev]'; }
	touch $(STAMP)

demo: setup
	$(BIN)/vitune demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: setup lint types
	$(BIN)/python -m pytest -n auto --dist worksteal

# More of kinds of which `make test` runs some: networks of the contract, presets, methods, fresh
# processes.
test-slow: setup
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow

# Eight kinds of method on 138 networks; writes docs/backbones.md. A run cut short goes on.
test-breadth: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m breadth tests/breadth/test_breadth.py

# The oldest libraries that pyproject.toml allows, in an environment of their own, and the tests that
# use most of them. Extras are tested with today's releases only.
LOWEST := .venv-lowest
LOWEST_TESTS ?= tests/ops tests/methods tests/contract tests/training tests/inference \
	tests/cli/test_commands.py
# The page of methods lists those of today's PEFT; the example package builds an environment of its own.
NOT_LOWEST := --deselect tests/methods/zoo/test_pages.py::test_methods_page_is_in_step \
	--ignore tests/contract/test_example_package.py
test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST) --resolution lowest-direct --editable .
	$(LOWEST)/bin/uv pip install --python $(LOWEST) 'pytest>=8' pytest-xdist hypothesis
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist worksteal $(LOWEST_TESTS) $(NOT_LOWEST)

# Flower needs older libraries than the other extras, so it has an environment of its own: the example
# of a federation, and the command line with Flower's typer.
FEDERATED := .venv-federated
test-federated:
	test -x $(FEDERATED)/bin/python || $(PYTHON) -m venv $(FEDERATED)
	$(FEDERATED)/bin/python -m pip install --quiet uv
	$(FEDERATED)/bin/uv pip install --python $(FEDERATED) --editable '.[federated]' 'pytest>=8'
	OMP_NUM_THREADS=1 $(FEDERATED)/bin/python -m pytest tests/privacy/test_federated_example.py tests/cli/test_options.py

# 2,000 damaged files, odd options, odd images and odd lists; `make test` runs 100 of this kind.
# Another seed makes other cases: make fuzz FUZZ_SEED=1
FUZZ_SEED ?= 0
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/fuzz --fuzz-cases 2000 --fuzz-seed $(FUZZ_SEED)

# ONNX Runtime for the page in examples/browser, by npm; its test is skipped without.
browser:
	cd examples/browser && npm ci --ignore-scripts

# The site, into site/; a broken link or an undocumented name is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(LOWEST) $(FEDERATED) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
