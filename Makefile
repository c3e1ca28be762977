# Two commands do everything on a fresh machine:  make demo   and   make test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-train test test-slow test-storage chaos fuzz bench bench-gpu lint format clean

# The environment: exact versions from constraints.txt. torch comes first, so that the CPU build
# that is pinned there satisfies everything that asks for a torch later.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(BIN)/i3d demo demo-output

# The demo's two networks, from nothing (docs/demo.md); broken off, the same command goes on.
TRAINING := demo-training
SEED := 0
demo-train: .venv/ready
	$(BIN)/i3d demo $(TRAINING)/train --videos-only --seed 1 --per-class 100
	$(BIN)/i3d demo $(TRAINING)/val --videos-only --seed 2 --per-class 15
	$(BIN)/i3d demo $(TRAINING)/fresh --videos-only --seed 20001 --per-class 25
	for set in train val fresh; do $(BIN)/i3d precompute $(TRAINING)/$$set $(TRAINING)/$$set-shards \
	    --classes folders --short-side 128 || exit 1; done
	for stream in rgb flow; do $(BIN)/i3d train $(TRAINING)/train-shards --stream $$stream \
	    --val $(TRAINING)/val-shards --output $(TRAINING)/$$stream --width 0.25 \
	    --recipe finetune --learning-rate 1e-3 --batch-size 8 --epochs 12 --frames 32 \
	    --label-smoothing 0.1 --val-every 3 --val-frames 64 --precision bf16 --seed $(SEED) || exit 1; done
	$(BIN)/i3d evaluate $(TRAINING)/fresh-shards --frames 64 --output $(TRAINING)/fresh.json \
	    --rgb-checkpoint $(TRAINING)/rgb/best.safetensors \
	    --flow-checkpoint $(TRAINING)/flow/best.safetensors

test: lint
	$(BIN)/python -m pytest

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

# Storage servers that cannot be started fail here instead of skipping.
test-storage: .venv/ready
	I3D_REQUIRE_STORAGE=hdfs,moto $(BIN)/python -m pytest -m "storage or slow" tests/storage

# Every long command, killed and starved at random and run again (docs/reliability.md):
# make chaos MINUTES=20 SEED=1; without SEED another one each time, which is printed.
MINUTES := 20
chaos: .venv/ready
	$(BIN)/python tests/campaigns/chaos --minutes $(MINUTES) \
	    $(if $(filter command line,$(origin SEED)),--seed $(SEED))

# Mutated files of every format that comes from outside (docs/reliability.md), in the same way:
# make fuzz MINUTES=10 SEED=3; corpus and findings in fuzz-output.
fuzz: .venv/ready
	$(BIN)/python tests/campaigns/fuzz --minutes $(MINUTES) \
	    $(if $(filter command line,$(origin SEED)),--seed $(SEED))

# Every stage beside its peers and limits, into benchmarks/results/ (docs/performance.md).
bench: .venv/ready
	for stage in forward flow precompute precompute_flow loader evaluate predict growth plot; do \
	    $(BIN)/python benchmarks/$$stage.py || exit 1; done

# What runs on a GPU, with PyTorch's CUDA build: flow is checked against the CPU's too. Without a
# GPU it says so and fails.
bench-gpu: .venv/ready
	for stage in flow forward evaluate precompute_flow growth; do \
	    $(BIN)/python benchmarks/$$stage.py --device cuda || exit 1; done

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo-output demo-training chaos-output fuzz-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
