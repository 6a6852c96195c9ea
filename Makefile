# Everything a newcomer needs: each target sets up .venv by itself and may be called first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two files at a time, one thread each: threads of two trainings on the same cores fight, and take ten times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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

gpu-test: $(VENV)/installed-dev
	$(PYTEST) -m "gpu or tensorrt"

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

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
