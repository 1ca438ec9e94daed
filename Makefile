PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint notebooks docs bench clean

.venv/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $@

demo: .venv/.installed
	$(BIN)/python -m psld_jax.main --config configs/saved.py --config.model.checkpoint=mnist --mode sample \
		--workdir runs/demo/mnist
	$(BIN)/python -m psld_jax.main --config configs/digits.py --mode sample --workdir runs/demo/digits
	$(BIN)/python -m psld_jax.main --config configs/digits.py --mode bench --workdir runs/demo/digits

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal --durations=15

test: lint
	$(PYTEST)

test-all: lint
	XLA_FLAGS= $(PYTEST) -m "slow or not slow"

notebooks: .venv/.installed
	$(BIN)/pip install --quiet --editable ".[notebooks]"
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb
	$(BIN)/jupyter nbconvert --to notebook --inplace --coalesce-streams notebooks/*.ipynb  # not while they run

docs: .venv/.installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/.installed
	mkdir -p runs
	$(BIN)/python -m benchmarks --output runs/bench.json $(BENCH)

clean:
	rm -rf .venv build dist *.egg-info runs site
