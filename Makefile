# Everything a newcomer needs: each target sets up its environment by itself and may be called first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# onnxruntime and onnxruntime-gpu share an import name, so they cannot share an environment either.
GPU_VENV := .venv-gpu
GPU_BIN := $(GPU_VENV)/bin
# Two tests at a time, one thread each: threads of two trainings on the same cores fight, and take ten times as long.
# A worker that dies ends the run: replaced by another, it was seen to leave the run waiting for ever.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --max-worker-restart 0

.PHONY: demo test lint types unit clean gpu-test image-test

demo: $(VENV)/installed
	$(BIN)/iekd-compress --teacher resnet50 --student mobilenet

test: lint types unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BIN)/mypy

unit: $(VENV)/installed-dev
	@tools/install-chromium.sh
	@tools/install-sshd.sh
	$(PYTEST)

# One test at a time: those that measure must have the GPU to themselves.
gpu-test: $(GPU_VENV)/installed-dev
	$(GPU_BIN)/python -m pytest -m "gpu or tensorrt"

# Builds the Dockerfile's CPU stage and runs the main job in it; needs root, debootstrap, buildah and 25 GB.
image-test:
	tools/image-test.sh

# pip reads pyproject.toml; a stamp file says for which version of it the environment was made.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dev]'
	@touch $@ $(VENV)/installed

$(GPU_VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_BIN)/python -m pip install --quiet --upgrade pip
	$(GPU_BIN)/python -m pip install --quiet --editable '.[gpu,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist *.egg-info src/*.egg-info
