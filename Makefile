# Two commands do everything on a fresh machine:  make demo   and   make test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-storage bench-gpu lint format clean

# The environment: exact versions from constraints.txt. torch comes first, so that the CPU build
# that is pinned there satisfies everything that asks for a torch later.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/i3d demo demo-output

test: lint
	$(BIN)/python -m pytest

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

# Storage servers that cannot be started fail here instead of skipping.
test-storage: .venv/ready
	I3D_REQUIRE_STORAGE=hdfs,moto $(BIN)/python -m pytest -m "storage or slow" tests/storage

# On a machine with an NVIDIA GPU and PyTorch's CUDA build: checks the GPU's results against the
# CPU's and measures its speed. Elsewhere it says so and exits with 1.
bench-gpu: .venv/ready
	$(BIN)/python benchmarks/flow.py --device cuda

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
