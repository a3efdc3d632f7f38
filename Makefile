# The first use of any target creates .venv with the pinned development set.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*/*.* tests/cuda_host/*.* tests/cuda_host/*/*.h)

.PHONY: build check test gpu-build demo bench
build: .venv/ready

.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	touch $@

.venv/ready: .venv/torch $(SOURCES)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu tests/cuda_host/*.cpp tests/cuda_host/*.h tests/cuda_host/*/*.h)

test: build
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadfile  # workers that spin starve each other

# Compiles the kernels for GPUs, which needs none: nvcc from the path or a wheel, and triton.
gpu-build: build
	$(BIN)/python -m cmlora_fast.benchmarks.gpu.build

demo: build
	$(BIN)/cmlora demo --out out

bench: build
	$(BIN)/cmlora bench kernels --out out/bench
	$(BIN)/cmlora bench pipeline --out out/bench
	$(BIN)/cmlora bench throughput --quick --out out/bench
