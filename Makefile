# Every command sets up what it needs. A fresh clone needs only Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
TEST_VENV := .venv-test
APP_VENV := .venv-app
# Two tests at once, each with one thread: the fastest way on two cores.
PYTEST_ARGS ?= -n 2 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BENCHES := bench-quantizer bench-tokenize bench-generator bench-quality bench-commitment bench-ablation bench-large-codebooks bench-quantizers \
  bench-mechanism bench-classifiers bench-generator-quality bench-scale bench-converted

.DEFAULT_GOAL := help
.PHONY: help demo samples test-app test test-newest test-oldest lint format docs notebook clean bench $(BENCHES)

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 26

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/ready  ## Train tokenizers and a generator on the shipped emoji, write demo/ (DEMO=quick: tokenizers only)
	$(VENV)/bin/hf-vq demo --output_dir demo $(if $(filter quick,$(DEMO)),--quick)

samples: $(VENV)/ready  ## Train the sample models of the package anew (hours; given again, it goes on where it was)
	$(VENV)/bin/python benchmarks/sample_models.py

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

test-app:  ## Test the page of hf-vq app in a headless Chromium (CHROMIUM=path), pictures in build/app
	$(PYTHON) -m venv $(APP_VENV)
	$(APP_VENV)/bin/pip install --quiet "$$(grep ^torch== constraints.txt)" -e ".[app]" "pytest>=9" "playwright>=1.50"
	$(APP_VENV)/bin/pytest -s tests/hf_vq/app/in_a_browser.py

lint: $(VENV)/ready  ## Check style (ruff) and types (mypy)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/ready  ## Fix style where ruff can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/docs: $(VENV)/ready
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

# The variable silences what the theme says of mkdocs 2. With --quiet, mkdocs would not count its warnings.
docs: $(VENV)/docs  ## Build the site into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

notebook: $(VENV)/docs  ## Run docs/quickstart.ipynb from top to bottom; a cell that fails is an error
	$(VENV)/bin/jupyter-execute --timeout=170 docs/quickstart.ipynb

$(VENV)/bench: $(VENV)/ready
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[bench]"
	touch $@

bench: $(BENCHES)  ## Make all tables below (takes hours on a CPU)

bench-quantizer: $(VENV)/bench  ## Speed and memory of the quantizer beside other libraries
	$(VENV)/bin/python benchmarks/quantizer_speed.py

bench-tokenize: $(VENV)/bench  ## Speed and memory of encode and decode beside diffusers with the same weights
	$(VENV)/bin/python benchmarks/tokenize_speed.py

bench-converted: $(VENV)/bench  ## Converted tokenizers beside the originals, at published sizes
	$(VENV)/bin/python benchmarks/converted_tokenizers.py
	$(VENV)/bin/python benchmarks/converted_generator.py

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

bench-quantizers: $(VENV)/bench  ## All kinds of quantizers, tuned alike, on the emoji
	$(VENV)/bin/python benchmarks/quantizers.py --tune
	$(VENV)/bin/python benchmarks/quantizers.py

bench-mechanism: $(VENV)/bench  ## Embeddings, codes and gradients in training, with pictures
	$(VENV)/bin/python benchmarks/mechanism.py

bench-classifiers: $(VENV)/bench  ## Accuracy with a quantized layer and each part of the method
	$(VENV)/bin/python benchmarks/classifiers.py

bench-generator-quality: $(VENV)/bench demo  ## Generators on the demo's two tokenizers
	$(VENV)/bin/python benchmarks/generator_quality.py

bench-scale: $(VENV)/bench  ## Speed of the search, the trainer and its data, and memory at the start of large runs
	$(VENV)/bin/python benchmarks/scale.py
	$(VENV)/bin/python benchmarks/search_speed.py

clean:  ## Remove environments and build products
	rm -rf build dist site *.egg-info $(VENV) $(TEST_VENV) $(APP_VENV) .pytest_cache .mypy_cache .ruff_cache
