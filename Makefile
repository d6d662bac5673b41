# Every target but gpu sets up what it needs: a virtual environment in $(VENV) and the compiled kernels beside the sources.

PYTHON ?= python3
VENV   ?= .venv

CSRC   := $(shell find csrc -type f 2>/dev/null)
SOURCES := $(filter %.cpp %.h %.cu %.cuh,$(CSRC) $(shell find tests -type f))
RUN    := $(VENV)/bin/python
JOBS   ?= 2
LAYERS := isa or interpret or emulator or sanitize or compile

.PHONY: demo test check full bench gpu

demo: $(VENV)/built
	mkdir -p demo
	$(VENV)/bin/mrtkern select mrtkern/data/wordnet_senses.parquet -o demo/kept.parquet --group-by word --k 4 \
		--text gloss --reward tag_count --compare --report demo/report.json --plot demo/kept.png

test: $(VENV)/built
	$(RUN) -m pytest -q -n $(JOBS)
	$(RUN) -m pytest -q -m "timed and not full"

check: $(VENV)/built $(VENV)/layers
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)
	$(MAKE) test
	$(RUN) -m pytest -q -n $(JOBS) --dist loadfile -m "($(LAYERS)) and not full"
	$(RUN) -m pytest -q -p tests.tools.imitation -m "gpu and not full"
	$(MAKE) gpu DRY=1 PYTHON=$(RUN)

full: $(VENV)/built $(VENV)/layers
	$(RUN) -m pytest -q -m ""

bench: $(VENV)/built
	$(RUN) -m bench

# On a machine with a GPU: the Python that is there, nothing installed. DRY=1: every step without a GPU.
gpu:
	$(PYTHON) -m bench.gpu $(if $(DRY),--dry) $(if $(OUT),--out "$(OUT)")

# Editable, so that a change in Python needs no second installation; the versions are those of constraints.txt.
$(VENV)/installed: pyproject.toml setup.py constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -qq -c constraints.txt setuptools pybind11
	$(RUN) -m pip install -qq -c constraints.txt --no-build-isolation -e ".[cli,text,test,bench,dev]"
	touch $@

# Triton, and what long tests compare with.
$(VENV)/layers: $(VENV)/installed
	$(RUN) -m pip install -qq -c constraints.txt --no-build-isolation -e ".[peers]"
	touch $@

# Recompiles what a change in csrc reaches; the objects are shared with the installation above.
$(VENV)/built: $(VENV)/installed $(CSRC)
	$(RUN) setup.py -q build_ext --inplace
	touch $@
