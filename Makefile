# Every target makes .venv on first use. Needs make and Python 3.11, nothing else installed.

PYTHON ?= python3.11
PIP_FLAGS ?= --quiet
PYTEST_FLAGS ?=
# For `make mutants`: the rooms, all by default, and the number of changes of each, 0 for all.
ROOMS ?=
SAMPLE ?= 0
# Processes that share the tests; each takes about a gigabyte.
WORKERS ?= 2
BIN := .venv/bin
BACKENDS := tensorflow jax torch
# The tests that run on every backend, and the few of them that `make test` runs on JAX.
BACKEND_TESTS := $(addprefix tests/test_,$(addsuffix .py,backends ops blockwise layers attention_layers blocks \
    causal_transformer chunked_loss config consistency decay dropout fused_adam fused_decoder generate initializers \
    inspected_transformer model_options moving_average muon normalization packed_model product remat transformer losses \
    progress_line schedules skipped_steps few_shapes hosts runs_on_backends))
GLANCE := tests/test_ops.py tests/test_layers.py -k "formula or explicit_mask_equals or finite_differences"
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# TensorFlow's start-up notices are not about this project; errors still show.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-backends coverage mutants mutants-attention check format bench gpu figures docs \
    tensorboard clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /|/' | \
	    while IFS='|' read -r target text; do printf '  make %-14s %s\n' "$$target" "$$text"; done

demo: .venv/.installed ## train, export and try a small translator
	@echo "demo: trains, exports and tries a small translator"
	@$(BIN)/keras-attention demo

# In parts, each in new processes, since TensorFlow never frees the graphs of custom gradients.
test: .venv/.installed ## run all tests except the slow ones, with the docstrings' examples
	@echo "test: runs all tests except the slow ones, with the docstrings' examples"
	@status=0; for part in "tests/test_[a-e]*.py" "tests/test_[f-o]*.py keras_attention" "tests/test_[p-z]*.py"; do \
	    $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $$part $(PYTEST_FLAGS) || test $$? = 5 || status=1; \
	done; exit $$status
	@if $(BIN)/python -c 'import jax' 2>/dev/null; then echo "test: a glance at JAX"; \
	    KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n $(WORKERS) $(GLANCE) $(PYTEST_FLAGS); \
	else echo "test: JAX is not installed, so nothing ran on it; make test-backends installs it"; fi

test-slow: .venv/.installed ## run the slow tests only
	@echo "test-slow: runs the tests marked slow"
	@$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

test-backends: .venv/.backends ## run layers, models and losses on TensorFlow, JAX and torch
	@echo "test-backends: runs the tests of layers, models and losses on $(BACKENDS)"
	@rm -rf build/backends; mkdir -p build/backends
	@for backend in $(BACKENDS); do \
	    left_out=slow; test $$backend = tensorflow || left_out="slow or tensorflow"; \
	    { KERAS_BACKEND=$$backend $(BIN)/python -m pytest -n $(WORKERS) -m "not ($$left_out)" $(BACKEND_TESTS) \
	        $(PYTEST_FLAGS) \
	        || touch build/backends/failed; } | tee build/backends/$$backend.txt; \
	done
	@for backend in $(BACKENDS); do \
	    printf 'test-backends: %-10s %s\n' $$backend "$$(tail -n 1 build/backends/$$backend.txt | tr -d =)"; done
	@test ! -e build/backends/failed

coverage: .venv/.installed ## run the tests with line and branch coverage; report in build/coverage
	@echo "coverage: runs the tests and counts the lines and branches that they reach"
	@$(BIN)/python -m pip install $(PIP_FLAGS) pytest-cov
	@$(BIN)/python -m pytest -q -n $(WORKERS) --cov=keras_attention --cov-branch --cov-report=term \
	    --cov-report=html:build/coverage $(PYTEST_FLAGS)

mutants: .venv/.backends ## change the code in small ways; tests must notice (hours; ROOMS="text" SAMPLE=100 is less)
	@echo "mutants: changes the code of $(if $(ROOMS),$(ROOMS),all rooms) line by line and sees that tests fail"
	@$(BIN)/python -m pip install $(PIP_FLAGS) mutmut
	@$(BIN)/python tests/mutants.py $(ROOMS) --sample $(SAMPLE)

mutants-attention: .venv/.backends ## the same for multi-head attention, whose class mutmut cannot change
	@$(BIN)/python -m pip install $(PIP_FLAGS) cosmic-ray
	@mkdir -p build; rm -f build/mutants.sqlite
	@$(BIN)/cosmic-ray init tests/mutants.toml build/mutants.sqlite
	@$(BIN)/cosmic-ray exec tests/mutants.toml build/mutants.sqlite
	@$(BIN)/cr-report build/mutants.sqlite | tail -n 3

check: .venv/.installed ## check format, lint, import rule and docstrings
	@echo "check: format, lint, the import rule, docstrings that match signatures"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/pydoclint keras_attention

format: .venv/.installed ## rewrite the code to the project's format
	@echo "format: rewrites the code and fixes what ruff can fix"
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: .venv/.backends ## measure against peers; results in benchmarks/results, the chart in docs/images (half an hour)
	@echo "bench: measures against peers, in turn, into benchmarks/results"
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.tools.chart

# Not from .venv, which has TensorFlow: Keras, JAX for the GPU, SentencePiece and the tools of the commands are enough.
gpu: ## try a GPU: train base on SOURCE= and TARGET= for 200 steps, decode, print the speed (PYTHON= one with JAX)
	@test -n "$(SOURCE)" -a -n "$(TARGET)" || { \
	    echo "error: name two text files: make gpu SOURCE=train.en TARGET=train.de" >&2; exit 1; }
	@$(PYTHON) -m benchmarks.gpu_run "$(SOURCE)" "$(TARGET)"

figures: .venv/.installed ## draw the figures of the documentation into docs/images
	@echo "figures: draws the figures of the documentation"
	@for script in docs/figures/*.py; do $(BIN)/python "$$script"; done

docs: .venv/.docs ## build the documentation into site/
	@echo "docs: builds the documentation into site/"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tensorboard: .venv/.installed ## show the logs of runs/ in a browser
	@echo "tensorboard: shows the logs of runs/"
	@$(BIN)/tensorboard --logdir runs

clean: ## remove .venv, caches and builds; keep runs/ and saved_models/
	@echo "clean: removes .venv, caches and builds; keeps runs/ and saved_models/"
	@rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for all targets. The stamp is written last, so that a failed installation is repeated.
.venv/.installed: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "error: '$(PYTHON)' is not a working Python >= 3.11. Install Python 3.11, or name" \
	         "one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    echo "setup: making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; }
	@echo "setup: installing keras_attention, TensorFlow and the tools into .venv" \
	      "(about 2 GB; minutes on first use)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --editable ".[all,test]"
	@touch $@

.venv/.backends: .venv/.installed
	@echo "setup: installing JAX and torch for a CPU into .venv (about 1 GB)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --editable ".[backends]"
	@touch $@

.venv/.docs: .venv/.installed
	@echo "setup: installing the documentation tools into .venv"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --editable ".[docs]"
	@touch $@
