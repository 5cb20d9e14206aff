# `make demo` and `make test` work in a fresh clone: each makes .venv and installs into it what it needs.
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := frontend service tests docker $(wildcard benchmarks)
SAMPLES := frontend/samples

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench eval need-dataset clean

help:
	@echo "make demo               match the sample pair, leave out/demo.png"
	@echo "make test               run all tests (more arguments: PYTEST_ARGS='-k image')"
	@echo "make lint               ruff and mypy"
	@echo "make bench              run the benchmarks, half an hour or more (benchmarks/sequences.py needs a folder: by hand)"
	@echo "make eval DATASET=DIR   homography benchmark on HPatches, an Oxford sequence, or a folder of photographs"
	@echo "make clean              remove .venv and everything that was built"

demo: $(VENV)/.runtime
	$(BIN)/superpoint-match $(SAMPLES)/rocket_0.jpg $(SAMPLES)/rocket_1.jpg -o out/demo.png

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/superpoint bench
	@for script in $(filter-out benchmarks/sequences.py,$(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

eval: need-dataset $(VENV)/.installed
	$(BIN)/superpoint eval homography "$(DATASET)"

need-dataset:
	@test -n "$(DATASET)" || { echo "make eval: say which data: make eval DATASET=DIR" >&2; exit 2; }

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# opencv-python needs the system's libGL and glib, which slim machines lack; the headless wheel is the same without.
define ensure_opencv
	@$(BIN)/python -c "import cv2" 2>/dev/null || { \
	  echo "opencv-python does not load here (no libGL?): using opencv-python-headless"; \
	  $(PIP) uninstall -q -y opencv-python opencv-python-headless 2>/dev/null; \
	  $(PIP) install -q -c constraints.txt opencv-python-headless; }
	@$(BIN)/python -c "import cv2"
endef

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" 2>/dev/null || \
	  { echo "make: Python 3.10 or newer is needed, and '$(PYTHON)' is not (try: make $(MAKECMDGOALS) PYTHON=python3.11)" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "make: '$(PYTHON)' could not make $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 2; }

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); torch is large, this takes some minutes"
	$(PIP) install -q -c constraints.txt -e .
	$(ensure_opencv)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); torch is large, this takes some minutes"
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	$(ensure_opencv)
	@touch $(VENV)/.runtime $@
