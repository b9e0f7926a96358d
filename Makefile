# Two commands do everything on a fresh machine: `make learn` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: learn test check clean

$(VENV)/.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# The main job on the built-in photographs: train, then write the report and say where it is.
learn: $(VENV)/.done
	$(BIN)/forwardsr learn photos --method joint --resolution 32 --budget 150s --out runs/photos

check: $(VENV)/.done
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) runs
