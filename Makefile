# make run    train on drawn images and write a report (first call: sets up .venv)
# make test   every check that CI makes
# make check  the quick ones: style, and tests without TensorFlow
# make lab    open JupyterLab
# make app    a page in the browser that answers for one's own images
# Also: notebooks (execute the committed ones anew), format, lock, clean.

SHELL := /bin/sh
VERSIONS := python3 python3.13 python3.12 python3.11
IS_KNOWN := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in $(VERSIONS); do $$p -c '$(IS_KNOWN)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
NOTEBOOKS := Skin_Cancer_Detection.ipynb $(wildcard notebooks/*.ipynb)
# Files in the order that is given: the main notebook first, at whose run tests look; small ones last.
TWO_CORES := -n 2 --dist loadfile --no-loadscope-reorder
NBVAL := --nbval -x -p tests.notebooks.nbval_streams
RUN_DIR := runs/sample
export TF_ENABLE_ONEDNN_OPTS := 1

.PHONY: run style check test sample_grid lab app notebooks format lock clean

run: .venv/installed
	$(BIN)/python -m helpers run Skin_Cancer_Detection.ipynb $(RUN_DIR)

style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: style
	$(BIN)/python -m pytest $(TWO_CORES) tests/units

test: style sample_grid
	$(BIN)/python -m pytest $(TWO_CORES) $(NBVAL) $(NOTEBOOKS) tests/notebooks tests/models tests/units

# What the notebooks 03 to 06 take, made by nobody's run but the checks'.
sample_grid: .venv/installed
	rm -rf runs/check
	SKIN_RUNS_DIR="$(CURDIR)/runs/check" \
		$(BIN)/python -m helpers grid notebooks/experiments/sample_grid.yaml --jobs 2

lab: .venv/installed
	$(BIN)/jupyter lab Skin_Cancer_Detection.ipynb

app: .venv/installed
	$(BIN)/voila notebooks/06_predict_images.ipynb

notebooks: sample_grid
	$(BIN)/python tests/notebooks/refresh.py $(NOTEBOOKS)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All packages with their versions, for every supported Python; no index addresses.
lock: .venv/installed
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
		--upgrade --no-header --no-annotate --no-emit-index-url requirements.txt -o requirements.lock

.venv/installed: requirements.lock requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it: make PYTHON=/path/to/python3.12 run"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) lacks venv: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	@touch $@

clean:
	rm -rf .venv runs data/sample data/cache
