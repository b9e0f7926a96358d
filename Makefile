# Two commands do everything on a fresh machine: `make learn` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: learn test check bench bench-quick clean

$(VENV)/.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# The main jobs: the theorem on a planted target, then a generator of the built-in photographs. Each says where its report is.
learn: $(VENV)/.done
	mkdir -p runs
	test -f runs/target.safetensors || $(BIN)/forwardsr plant --out runs/target.safetensors
	$(BIN)/forwardsr learn runs/target.safetensors --method minmax --out runs/theorem
	$(BIN)/forwardsr learn photos --method joint --resolution 32 --budget 150s --out runs/photos

check: $(VENV)/.done
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

$(VENV)/.bench: $(VENV)/.done
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps torch-mimicry==0.1.16  # its own dependencies include tensorflow
	$(BIN)/python -m pip uninstall --quiet --yes torchvision  # built for another torch: no side needs it, and tests would find it
	touch $@

# Against peers and limits: makes docs/benchmarks.md. In full, about an hour on two idle cores; the quick one, minutes.
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/bench.py

bench-quick: $(VENV)/.bench
	$(BIN)/python benchmarks/bench.py --quick

clean:
	rm -rf $(VENV) runs
