# make demo    a model trained on real digits, its samples and timings, in out/
# make sound   a WaveNet trained on a flute, and seconds of what it plays, in out/
# make test    the tests but for the slow ones, which `make slow` runs (CI runs both, and `make lint`, `make docs`,
#              `make ptxas`)
# make docs    the documentation as a site, in build/docs; a broken link or cross-reference is an error
# make wheel, make sdist, make bench, make clean
#
# Each creates .venv, installs the pinned requirements and builds; a second call goes straight to work.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

build_inputs := CMakeLists.txt setup.py pyproject.toml tools/build_paths.py $(shell find csrc -type f)
cpp_files := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo sound test slow lint docs ptxas wheel sdist bench clean

demo: $(VENV)/.built
	$(PY) examples/demo.py

sound: $(VENV)/.built
	$(PY) examples/sound.py

test: $(VENV)/.built
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow"

slow: $(VENV)/.built
	$(PY) -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(cpp_files)
	PYTHONPATH=. $(VENV)/bin/lint-imports --no-logo --no-cache

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo build/docs/index.html

# The CUDA compile with ptxas' figures: registers, shared memory; a spill is an error.
ptxas: $(VENV)/.installed
	$(PY) tools/ptxas.py

wheel: $(VENV)/.installed
	@rm -rf build/lib* build/bdist*
	$(PIP) wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

sdist: $(VENV)/.installed
	@mkdir -p build && $(PY) -m build --sdist --no-isolation > build/sdist.log 2>&1 \
	  || { tail -n 20 build/sdist.log; exit 1; }
	@ls dist/*.tar.gz

bench: $(VENV)/.built
	$(VENV)/bin/gmfast bench --targets --out out/bench

clean:
	rm -rf build dist out gmfast/*.so $(VENV)/.built

$(VENV)/.installed: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) was not found; name another with PYTHON=..."; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "make: no C++ compiler was found; install g++ (12 or newer)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -r requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(build_inputs)
	@mkdir -p build && echo "building (log: build/build.log)"
	@$(PIP) install -v --no-build-isolation --no-deps -e . > build/build.log 2>&1 \
	  || { tail -n 40 build/build.log; exit 1; }
	@grep -o 'gmfast: [a-zA-Z ]* .*' build/build.log | grep -v filename=
	@touch $@
