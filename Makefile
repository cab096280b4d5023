# Every command sets up what it needs. A fresh clone needs only Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
TEST_VENV := .venv-test
# Two tests at once, each with one thread: the fastest way on two cores.
PYTEST_ARGS ?= -n 2 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BENCHES := bench-quantizer bench-tokenize bench-generator bench-quality bench-commitment bench-ablation bench-large-codebooks \
  bench-mechanism bench-classifiers bench-generator-quality

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest test-oldest lint format clean bench $(BENCHES)

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 26

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/ready  ## Train tokenizers and a generator on the shipped emoji, write demo/ (DEMO=quick: tokenizers only)
	$(VENV)/bin/hf-vq demo --output_dir demo $(if $(filter quick,$(DEMO)),--quick)

# $(1) installs what the wheel needs. PYTHONSAFEPATH keeps the source tree off the path, so the tests run against the wheel.
define test_the_wheel
	rm -rf build dist $(TEST_VENV)
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	$(TEST_VENV)/bin/pip install --quiet $(1)
	$(TEST_VENV)/bin/pip install --quiet --no-deps dist/hf_vq-*.whl
	PYTHONSAFEPATH=1 OMP_NUM_THREADS=1 $(TEST_VENV)/bin/pytest $(PYTEST_ARGS)
endef

test:  ## Build the wheel, install it in a fresh environment, run all tests against it
	$(call test_the_wheel,-c constraints.txt "$$(ls dist/hf_vq-*.whl)[dev]")

test-newest:  ## The same with the newest versions of everything
	$(call test_the_wheel,"$$(ls dist/hf_vq-*.whl)[dev]")

# transformers before 5.20 hides AutoImageProcessor where there is no torchvision.
test-oldest: PYTHON := python3.10
test-oldest:  ## The same with the oldest versions that pyproject.toml allows, on Python 3.10
	$(call test_the_wheel,uv && $(TEST_VENV)/bin/uv pip install --quiet --python $(TEST_VENV) \
	  --resolution lowest-direct -r pyproject.toml --extra dev torchvision==0.21.0)

lint: $(VENV)/ready  ## Check style (ruff) and types (mypy)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/ready  ## Fix style where ruff can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/bench: $(VENV)/ready
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[bench]"
	touch $@

bench: $(BENCHES)  ## Make all tables below (takes hours on a CPU)

bench-quantizer: $(VENV)/bench  ## Speed and memory of the quantizer beside other libraries
	$(VENV)/bin/python benchmarks/quantizer_speed.py

bench-tokenize: $(VENV)/bench  ## Speed and memory of encode and decode beside diffusers with the same weights
	$(VENV)/bin/python benchmarks/tokenize_speed.py

bench-generator: $(VENV)/bench  ## Speed of the generator beside diffusers
	$(VENV)/bin/python benchmarks/generator_speed.py

bench-quality: $(VENV)/bench  ## Held-out error and codebook use of each method in one autoencoder
	$(VENV)/bin/python benchmarks/quality.py

bench-commitment: $(VENV)/bench  ## Weights of the commitment loss in a loop of one's own
	$(VENV)/bin/python benchmarks/commitment_weight.py

bench-ablation: $(VENV)/bench  ## Each part of the method alone, all but one, and the knobs
	$(VENV)/bin/python benchmarks/ablation.py

bench-large-codebooks: $(VENV)/bench  ## 256 to 65,536 codes beside other methods
	$(VENV)/bin/python benchmarks/large_codebooks.py

bench-mechanism: $(VENV)/bench  ## Embeddings, codes and gradients in training, with pictures
	$(VENV)/bin/python benchmarks/mechanism.py

bench-classifiers: $(VENV)/bench  ## Accuracy with a quantized layer and each part of the method
	$(VENV)/bin/python benchmarks/classifiers.py

bench-generator-quality: $(VENV)/bench demo  ## Generators on the demo's two tokenizers
	$(VENV)/bin/python benchmarks/generator_quality.py

clean:  ## Remove environments and build products
	rm -rf build dist *.egg-info $(VENV) $(TEST_VENV) .pytest_cache .mypy_cache .ruff_cache
