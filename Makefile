# Every target but gpu sets up what it needs: a virtual environment in $(VENV) and the compiled kernels beside the sources.

PYTHON  ?= python3
VENV    ?= .venv

CSRC    := $(shell find csrc -type f 2>/dev/null)
SOURCES := $(filter %.cpp %.h %.cu %.cuh,$(CSRC) $(shell find tests -type f))
RUN     := $(VENV)/bin/python
JOBS    ?= 2
INSTALL := -m pip install -qq --no-compile -c constraints.txt
LAYERS  := isa or interpret or emulator or sanitize or compile or trainers

.PHONY: demo help test untimed timed format lint check imitate full bench science gpu

demo: $(VENV)/built ## Keep 4 glosses of each word of a real file: demo/ has the rows, a report and a figure.
	mkdir -p demo
	$(VENV)/bin/mrtkern select mrtkern/data/wordnet_senses.parquet -o demo/kept.parquet --group-by word --k 4 \
		--text gloss --reward tag_count --compare --report demo/report.json --plot demo/kept.png

help: ## Say what each target does.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

test: untimed timed ## Run the tests that need no other tool and no long time.

untimed: $(VENV)/built ## Run those of them that measure no time.
	$(RUN) -m pytest -q -n $(JOBS)

timed: untimed ## Run those that do, alone.
	$(RUN) -m pytest -q -m "timed and not full"

format: $(VENV)/installed ## Lay out Python and C++ as `make check` wants them.
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	$(VENV)/bin/clang-format -i $(SOURCES)

lint: $(VENV)/installed ## Check layout and types.
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

check: $(VENV)/built $(VENV)/layers ## Run what CI runs: layout, types, every test but the long ones.
	$(MAKE) --jobs 2 lint test
	$(RUN) -m pytest -q -n $(JOBS) --dist loadfile -m "($(LAYERS)) and not full"
	$(MAKE) imitate
	$(MAKE) gpu DRY=1 PYTHON=$(RUN)

imitate: $(VENV)/built $(VENV)/layers ## Run the tests marked gpu on an imitated device.
	$(RUN) -m pytest -q -n $(JOBS) --dist loadfile -p tests.tools.imitation -m "gpu and not full"

full: $(VENV)/built $(VENV)/layers ## Run every test, the long ones too.
	$(RUN) -m pytest -q -m ""

bench: $(VENV)/built ## Time every operation beside its peers and write bench/RESULTS.md.
	$(RUN) -m bench

science: $(VENV)/built ## Simulate what the paper says, draw it and write bench/SCIENCE.md.
	$(RUN) -m bench.science

# On a machine with a GPU: the Python that is there, nothing installed. DRY=1: every step without a GPU.
gpu: ## On a machine with a GPU: build, test, time and sanitize there; DRY=1 goes through it without one.
	$(PYTHON) -m bench.gpu $(if $(DRY),--dry) $(if $(OUT),--out "$(OUT)")

# Editable, so that a change in Python needs no second installation; the versions are those of constraints.txt. Modules
# become bytecode when they are first imported: most of them never are (43 seconds instead of 78).
$(VENV)/installed: pyproject.toml setup.py constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) $(INSTALL) setuptools pybind11
	$(RUN) $(INSTALL) --no-build-isolation -e ".[cli,text,train,test,bench,dev]"
	touch $@

# Triton, and what long tests compare with.
$(VENV)/layers: $(VENV)/installed
	$(RUN) $(INSTALL) --no-build-isolation -e ".[peers]"
	touch $@

# Recompiles what a change in csrc reaches; the objects are shared with the installation above.
$(VENV)/built: $(VENV)/installed $(CSRC)
	$(RUN) setup.py -q build_ext --inplace
	touch $@
