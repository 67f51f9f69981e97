# Every target calls a script in dev/ or tools/ that can also be run by hand.
#
#   make demo                       install, draw synthetic data, train, evaluate, search (CPU, no data needed)
#   make demo DEMO=--quick          the same commands with tiny data and two iterations, as a check
#   make test                       install, lint, whole test suite
#   make test COVERAGE=1            also fails below the coverage of pyproject.toml, as in CI
#   make test BACKEND=real DETECTRON2=<checkout>     the same on a source checkout of the real Detectron2
#   make lint | env | packaging | clean
#
# PYTHON=python3.12 selects the interpreter of the environment, VENV=<folder> its location.

PYTHON ?= python3
VENV ?= .venv
BACKEND ?= lite
DETECTRON2 ?=
DEMO ?=
COVERAGE ?=
export PYTHON VENV
unexport PYTHONDONTWRITEBYTECODE  # every step starts Python processes, whose imports it doubles

.PHONY: demo test lint env packaging clean help

help:
	@sed -n 's/^#   //p' Makefile

# the demo reports its total time, installation included
demo: export DEMO_STARTED := $(shell date +%s)
demo: env
	$(VENV)/bin/python tools/demo.py $(DEMO)

env:
	@dev/setup_env.sh

test:
ifeq ($(BACKEND),lite)
	@dev/setup_env.sh --dev
	@dev/linter.sh
	@dev/run_tests.sh $(if $(COVERAGE),--coverage)
else ifeq ($(BACKEND),real)
	@dev/setup_env.sh --dev --real
	@dev/linter.sh
	@dev/run_tests.sh $(if $(COVERAGE),--coverage) --with-detectron2 "$(DETECTRON2)"
else
	$(error BACKEND is '$(BACKEND)'; it must be 'lite' or 'real')
endif

lint:
	@dev/setup_env.sh --dev
	@dev/linter.sh

packaging:
	@dev/check_packaging.sh

clean:
	rm -rf "$(VENV)" output build *.egg-info compat/detectron2-lite/src/*.egg-info
