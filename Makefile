# Two environments, made where they are needed and brought up to date when their inputs change:
#
#   .venv       the project as users get it, an installed wheel: `make demo` and `make bench`. (An
#               editable install would cost each start 7 ms and read the links, not the wheel.)
#   .venv-test  what the tests need, without the project: they import it from this tree, and no
#               old copy can be tested by mistake. tests/test_packaging.py installs the wheel.
#
# All paths are relative: the tree may lie in a directory with spaces.

PYTHON ?= python3
ARGS ?=
TIME ?= 60

TEST = .venv-test/bin/python
SOURCES := $(shell find unwind/ arch transports bpf share -type f ! -name '*.pyc' 2>/dev/null)

.PHONY: help demo bpf test test-kernel test-pictures lint bench bench-live bench-leaks bench-perf agreement docs packages clean
.PHONY: oracle oracle-rows oracle-steps oracle-programs oracle-tables oracle-tables-large oracle-lines oracle-damage fuzz
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## *' '/^[a-z-]+:.*## / { printf "make %-19s %s\n", $$1, $$2 }' Makefile

demo: .venv/ready  ## install into .venv, crash a program (or take one of examples/), unwind it
	@sh examples/demo.sh .venv/bin/unwind-core

bpf:  ## build the BPF programs, which takes clang
	@command -v clang >/dev/null || { echo "clang is missing: apt install clang" >&2; exit 1; }
	$(MAKE) --no-print-directory -C bpf

test: packages .venv-test/ready  ## run the tests; ARGS="-k name -x" goes to pytest
	$(TEST) -m pytest $(ARGS)

test-kernel: packages .venv-test/ready  ## crashes and events under Debian's kernels, in qemu-system
	@sh tools/debian-packages.sh qemu-system-arm qemu-system-mips qemu-system-x86
	$(TEST) -m tests.kernel $(ARGS)
	$(TEST) -m tests.event_kernel
	$(TEST) -m tests.dump_kernel

test-pictures: packages .venv-test/ready  ## profiles in the programs that people look at them with
	@sh tools/debian-packages.sh chromium fonts-dejavu-core golang-go libdevel-nytprof-perl linux-perf
	@command -v npm >/dev/null || sh tools/debian-packages.sh npm
	@npm install --silent --no-audit --no-fund --prefix .pictures \
		speedscope@1.25.0 @firefox-devtools/profiler-cli@0.10.0
	$(TEST) -m pytest tests/pictures.py $(ARGS)

lint: .venv-test/ready  ## ruff and mypy, which `make test` runs as well
	$(TEST) -m ruff check .
	$(TEST) -m ruff format --check .
	$(TEST) -m mypy --strict -p unwind

oracle: oracle-rows oracle-steps oracle-programs oracle-tables oracle-tables-large oracle-lines oracle-damage  ## all of the oracles, one after another (long)

oracle-rows: packages .venv-test/ready  ## rows and instructions against readelf, all of the machine
	$(TEST) -m tools.oracle $(ARGS)

oracle-programs: packages .venv-test/ready  ## random programs, crashed at random, on all processors
	$(TEST) -m tools.programs $(ARGS)

oracle-steps: packages .venv-test/ready  ## programs run one instruction at a time, by a shadow stack
	@sh tools/debian-packages.sh sqlite3
	$(TEST) -m tools.steps $(ARGS)

oracle-tables: packages .venv-test/ready  ## rows against the plain model, llvm-dwarfdump, pyelftools
	@sh tools/debian-packages.sh llvm-19
	$(TEST) -m tools.tables $(ARGS)

oracle-tables-large: packages .venv-test/ready  ## the same over this machine's large files
	@sh tools/debian-packages.sh llvm-19
	$(TEST) -m tools.tables --large $(ARGS)

oracle-lines: packages .venv-test/ready  ## lines and inlined functions: llvm-symbolizer, addr2line
	@sh tools/debian-packages.sh llvm-19
	$(TEST) -m tools.lines $(ARGS)

oracle-damage: packages .venv-test/ready  ## damaged files for gdb, eu-stack, readelf, pyelftools
	$(TEST) -m tools.readers $(ARGS)

fuzz: packages .venv-test/ready  ## TIME=60 ARGS="elf core": look for bytes that break a reader
	@$(TEST) tools/requirements.py fuzz >.venv-test/fuzz.txt
	@$(TEST) -m pip install --quiet --disable-pip-version-check -r .venv-test/fuzz.txt
	$(TEST) -m tools.fuzz --time $(TIME) $(ARGS)

bench: packages .venv-test/ready .venv/ready  ## measure, and write the table of BENCHMARKS.md
	$(TEST) -m tools.bench $(ARGS)
	$(TEST) -m tools.bench_perf $(ARGS)
	$(TEST) -m tools.bench_live $(ARGS)
	$(TEST) -m tools.bench_leaks $(ARGS)

bench-leaks: packages .venv-test/ready  ## the part of that which is about unwind-memleak, 12 minutes
	@sh tools/debian-packages.sh bpfcc-tools linux-headers-amd64
	$(TEST) -m tools.bench_leaks $(ARGS)

bench-live: packages .venv-test/ready .venv/ready  ## the part of that which is about unwind-live
	$(TEST) -m tools.bench_live $(ARGS)

bench-perf: packages .venv-test/ready .venv/ready  ## the part of that which is about unwind-perf
	$(TEST) -m tools.bench_perf $(ARGS)

agreement: packages .venv-test/ready  ## compare code with CFI, and write the tables of BENCHMARKS.md
	$(TEST) -m tools.agreement_corpus $(ARGS)

docs: .venv-test/ready  ## make man pages and completion from the commands' parsers
	$(TEST) -m tools.make_docs

clean:  ## remove the environments and all that was built
	rm -rf .venv .venv-test .kernels .agreement .fuzz .pictures build dist *.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage
	$(MAKE) --no-print-directory -C bpf clean
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

packages:
	@sh tools/debian-packages.sh

# --upgrade-deps: before its version 25.1 pip writes commands that import re, for 3 ms a start.
.venv/ready: setup.cfg pyproject.toml $(SOURCES)
	$(PYTHON) -m venv --upgrade-deps .venv
	rm -rf build  # setuptools packs what an older build left there
	.venv/bin/python -m pip install --quiet --disable-pip-version-check .
	@touch $@

.venv-test/ready: setup.cfg tools/requirements.py
	$(PYTHON) -m venv .venv-test
	$(TEST) tools/requirements.py test zstd >.venv-test/requirements.txt
	$(TEST) -m pip install --quiet --disable-pip-version-check -r .venv-test/requirements.txt
	@touch $@
