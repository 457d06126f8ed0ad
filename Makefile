# make demo   train a small net, convert it to every format and compare the engines, blob by blob
# make test   lint, types, tests
# make bench  time and memory of a full-size conversion; speed of the input pipeline, of training steps, of evaluation
# make proto  regenerate caffe_compat/schema/caffe_pb2.py from caffe.proto
# make tables  write the layer table into README.md
# make clean  remove what the above have made, except .venv

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PY := $(VENV)/bin/python
SETUP := pyproject.toml constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
MAKEFLAGS += --no-print-directory

.PHONY: demo test bench proto tables clean

demo: $(VENV)/repro.stamp
	@$(PY) -m repro.demo

bench: $(VENV)/test.stamp
	@$(PY) -m tests.bench.convert
	@$(PY) -m tests.bench.to_caffe
	@$(PY) -m tests.bench.forward --compile
	@$(PY) -m tests.bench.pipeline
	@$(PY) -m tests.bench.solver
	@$(PY) -m tests.bench.training
	@$(PY) -m tests.bench.evaluate

test: export OMP_NUM_THREADS := 1
test: $(VENV)/test.stamp
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --quiet --check .
	@$(PY) -m mypy --no-error-summary
	@$(PY) -m pytest -n $(JOBS)

proto: $(VENV)/test.stamp
	@$(PY) caffe_compat/schema/generate.py

tables: $(VENV)/verify.stamp
	@$(PY) -m caffe_compat.support README.md

clean:
	@rm -rf demo bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -m venv $(VENV)

$(VENV)/%.stamp: $(SETUP) | $(PY)
	@echo "installing into $(VENV) ..."
	@$(PY) -m pip install -qq --constraint constraints.txt --editable ".[$*]"
	@touch $@
