# make demo: train, pack and export a network for every bit-width. make test: all quick tests.
# make integration: the slow ones, many minutes. make docs: the site.
# make finn-env: the environment of the FPGA compiler; make test-finn: the tests that need it.
# make test-rtl: small accelerators in RTL, simulated; needs a C++ compiler.
PYTHON ?= python3.11
VENV ?= .venv
RUN := OMP_NUM_THREADS=2 $(VENV)/bin
INSTALLED := $(VENV)/.installed
FINN_VENV ?= .venv-finn
FINN_INSTALLED := $(FINN_VENV)/.installed

# make test-configs: two steps of every row of the paper's tables.
.PHONY: demo test test-configs integration docs lint finn-env test-finn test-rtl clean

$(INSTALLED): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(RUN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no --cpu recipes/train.py -c recipes/configs/digits_resnet8.yaml \
		--output demo --experiment digits_resnet8 --overwrite
	$(RUN)/python recipes/evaluate.py demo/digits_resnet8/best.safetensors
	$(RUN)/python recipes/export.py demo/digits_resnet8/best.safetensors --output demo/qonnx

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

test-configs: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal \
		integration_tests/test_paper_configs.py

integration: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal integration_tests

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(FINN_INSTALLED): requirements-finn.txt pyproject.toml
	test -x $(FINN_VENV)/bin/python || $(PYTHON) -m venv $(FINN_VENV)
	$(FINN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-finn.txt
	$(FINN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

finn-env: $(FINN_INSTALLED)

test-finn: $(FINN_INSTALLED)
	OMP_NUM_THREADS=1 $(FINN_VENV)/bin/python -m pytest -W ignore -n auto \
		--dist worksteal integration_tests/test_finn.py integration_tests/test_finn_folding.py

test-rtl: $(FINN_INSTALLED)
	OMP_NUM_THREADS=1 $(FINN_VENV)/bin/python -m pytest -W ignore -n auto \
		--dist worksteal integration_tests/test_rtl.py

clean:
	rm -rf demo output build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
