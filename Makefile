# `make test` and `make demo` work from a clean clone: they make .venv, install, build and run.
PYTHON ?= python3
TORCH ?= torch>=2.11
PY := .venv/bin/python
INSTALLED := .venv/installed

.PHONY: build test test-portable test-gpu faults lint format docs wheel sdist bench lease demo clean

# Installs torch first, so that the build uses the torch that the package runs with. Only `build` makes the native
# libraries, since not every target needs them.
$(INSTALLED): pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install "$(TORCH)" "setuptools>=77" wheel "cmake>=3.24" ninja "pybind11>=2.13"
	LGFAST_NATIVE=off $(PY) -m pip install --no-build-isolation --editable ".[dev]"
	touch $@

build: $(INSTALLED)
	$(PY) setup.py build_ext --inplace

# One worker more than cores (tests/conftest.py), each with one thread. The tests of a file stay together, since they share fixtures.
# Files with slow tests come first (tests/conftest.py), so that the workers end at about the same time.
test: build
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not gpu" -n auto --dist loadfile --no-loadscope-reorder

# Runs the numerical tests as other processors, numbers of threads and seeds would run them: two minutes.
test-portable: build
	$(PY) -m tests.portable

test-gpu: build
	$(PY) -m pytest -m gpu

# Kills or fails every file-system call of a run in turn and continues the run: some minutes. The tests take a sample.
faults: build
	$(PY) -m tests.faults.harness

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format --dry-run -Werror
	$(PY) -m mypy

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format -i

# Builds the guide into build/site, without network; every warning is an error. Needs no native libraries.
docs: $(INSTALLED)
	LGFAST_NATIVE=off NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# Builds a wheel into dist/, for the Python of .venv, with kernels for many GPUs. auditwheel names the oldest glibc that
# the wheel runs on. torch's libraries stay out of the wheel, since torch has loaded them. tests/wheel.py checks it.
WHEEL_GPUS := 8.0 9.0a 10.0 12.0+PTX
wheel: $(INSTALLED)
	rm -rf build/wheels build/lib.* build/bdist.*
	LGFAST_CUDA=on TORCH_CUDA_ARCH_LIST="$(WHEEL_GPUS)" \
	  $(PY) -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheels .
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m auditwheel repair \
	  --exclude libtorch_cpu.so --exclude libc10.so --wheel-dir build/wheels/tagged build/wheels/*.whl
	$(PY) -m tests.wheel --gpus "$(WHEEL_GPUS)" build/wheels/tagged/*.whl
	mkdir -p dist && mv build/wheels/tagged/*.whl dist/

# Builds the source archive into dist/; pip builds it where no wheel fits.
sdist: $(INSTALLED)
	mkdir -p dist
	LGFAST_NATIVE=off $(PY) -c "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"

bench: build
	for script in benchmarks/bench_*.py; do $(PY) -m benchmarks.$$(basename $$script .py) || exit 1; done

# Prints the commands for a short time on a GPU machine without network: before, there and after (benchmarks/README.md).
PACK ?= pack
lease:
	@echo "# before, here: wheels for Python 3.12, and a rehearsal on the CPU"
	@echo "$(PY) benchmarks/fetch_wheels.py && $(PY) benchmarks/gpu_suite.py --dry-run --lease 4 --out /tmp/dry"
	@echo "# there, first call: 7 minutes to build and measure, the most important first"
	@echo "export LGFAST_COMMIT=$$(git rev-parse --short HEAD) LGFAST_PACK=$(PACK) TORCH_CUDA_ARCH_LIST=9.0a" \
	  "TORCHINDUCTOR_COMPILE_THREADS=1 PYTHONUNBUFFERED=1; python3 benchmarks/gpu_suite.py --lease 7 --wheels wheels"
	@echo "# here: bring $(PACK)/ back, read, mend; this restores the state and the libraries for a fresh copy there"
	@echo "mkdir -p runs/gpu-suite && tar xzf $(PACK)/results.tar.gz -C runs/gpu-suite;" \
	  "tar xzf $(PACK)/libraries.tar.gz -C lgfast"
	@echo "# there, second call: the same exports, then"
	@echo "python3 benchmarks/gpu_suite.py --lease 5 --continue --wheels wheels"
	@echo "# after, here: keep the rows and write the tables of README.md and docs/"
	@echo "cp -r runs/gpu-suite/results/*.csv benchmarks/results/ && python3 benchmarks/tables.py"

demo: build
	$(PY) -m lgfast.reproduce --rows digits --seeds 0 1 2 --workers 2 --out runs/demo

clean:
	rm -rf build dist lgfast/*.so *.egg-info
