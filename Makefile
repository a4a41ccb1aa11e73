# make test and make demo work from a clean clone: they make .venv, install, build and run.
PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/installed

.PHONY: build test test-gpu lint format bench demo clean

# torch first, so that the build uses the torch the package runs with.
$(INSTALLED): pyproject.toml setup.py
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install "torch>=2.11" "setuptools>=77" wheel "cmake>=3.24" ninja "pybind11>=2.13"
	$(PY) -m pip install --no-build-isolation --editable ".[dev]"
	touch $@

build: $(INSTALLED)
	$(PY) setup.py build_ext --inplace

# A worker a core, each with one thread; a file's tests stay together, for they share fixtures.
test: build
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not gpu" -n auto --dist loadfile

test-gpu: build
	$(PY) -m pytest -m gpu

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format --dry-run -Werror

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs .venv/bin/clang-format -i

bench: build
	for script in benchmarks/bench_*.py; do $(PY) -m benchmarks.$$(basename $$script .py) || exit 1; done

demo: build
	$(PY) -m lgfast.reproduce --rows digits --seeds 0 1 2 --workers 2 --out runs/demo

clean:
	rm -rf build dist lgfast/*.so *.egg-info
