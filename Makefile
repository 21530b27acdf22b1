# A thin front: every line is a command one could type. Another interpreter: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test bench check clean

demo: $(READY)  ## pretrain → SFT → reward model → PPO on real human judgments, a small GPT on a CPU
	$(BIN)/rlhf pipeline

test: $(READY)  ## the test suite; Triton's kernels first, in its interpreter, which is chosen when triton is imported
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n auto --dist worksteal tests/kernels -k triton
	$(BIN)/python -m pytest -n auto --dist worksteal

bench: $(READY)  ## every op against eager PyTorch, small shapes
	$(BIN)/rlhf bench run preset=ci

check: $(READY)  ## linters and the type checker
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:  ## remove the virtual environment and what was built
	rm -rf $(VENV) build *.egg-info rlhf_core/*.so

$(READY): pyproject.toml setup.py $(wildcard csrc/* csrc/cpu/* csrc/cuda/* csrc/terms/*)
	$(PYTHON) -c 'import sys; sys.exit("rlhf_core needs Python 3.11 or newer: make PYTHON=python3.12 …") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" "setuptools>=77" wheel pybind11 ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev,tensorboard,smollm2,triton]"
	touch $(READY)
