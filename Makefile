# Every target first sets up what is missing on this machine: see setup.sh.

TASK ?= dmc_walker_walk
# A folder a task: a run resumes only with the settings it was started with.
LOGDIR ?= ./logs/$(TASK)
ROOT ?= ./logs
ARGS ?=

PYTHON = .venv/bin/python

.PHONY: setup train paper test lint bench bench-gpu soak

setup:
	@./setup.sh

train: setup
	$(PYTHON) dreamer.py --logdir $(LOGDIR) --task $(TASK) $(ARGS)

# A figure of the paper, for example FIGURE=7, run and then drawn.
paper:
	@./setup.sh requirements-sweep.txt
	$(PYTHON) sweep.py --figure $(FIGURE) --root $(ROOT) $(ARGS)
	$(PYTHON) plotting.py --figure $(FIGURE) --logdir $(ROOT)

# All of it, Ray too.
test:
	@./setup.sh requirements-sweep.txt
	$(PYTHON) -m pytest tests

lint: setup
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

soak: setup
	$(PYTHON) tests/run/soak.py $(ARGS)

bench: setup
	$(PYTHON) benchmarks/run.py $(ARGS)

# At most ten minutes on a machine with a GPU.
bench-gpu: setup
	$(PYTHON) benchmarks/gpu.py $(ARGS)
