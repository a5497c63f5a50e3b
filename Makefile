# Two commands for a fresh machine:  make run   make test
#
# Each step leaves a stamp in .venv/stamps when it is complete, so that steps are done once, again when their sources
# change, and again after an interruption. What takes a network is done before the tests, which have none.
#
#   make run [CMD="..."]   set everything up; run `npm ci` (or CMD) under childflow in examples/npm-project
#   make test [PYTEST=..]  set everything up, system packages included; lint; all tests. PYTEST: options, as -k dns
#   make lint              ruff, mypy --strict, warnings of the C compiler
#   make asan              the scripted conversations with the C stack, under AddressSanitizer and UBSan
#   make fuzz [SECONDS=3600] [TARGET="frame dns .."]   every fuzzer (or TARGET) for SECONDS, two at a time; the first
#                          finding ends it; what is new is merged into tests/fuzz/corpus, which `make test` replays
#   make coverage          branches of the C stack that the scripted conversations and the corpora take, by file
#   make soak              the long tests: gigabytes, loss, thousands of flows, half an hour of mixed load
#   make bench             all benchmarks: bench-bulk (one TCP stream), bench-loss (the same through loss), bench-start (the
#                          cost of a run), bench-npm, bench-rules (what many rules cost),
#                          bench-flight (what reading the name in a first flight costs), bench-proxy (what a proxy costs),
#                          bench-dns (5,000 queries a second)
#   make clean             remove what was built

PYTHON = $(shell tests/find_python.sh)
BIN = .venv/bin
STAMPS = .venv/stamps
PYTEST =
CMD =
SECONDS = 3600
TARGET =

C_SOURCES = $(filter-out childflow/_netstack.c childflow/_sandbox.c, $(wildcard childflow/*/*.c childflow/*/*.h))
BUILD_SOURCES = $(C_SOURCES) $(wildcard childflow/*_ext/build.py) setup.py pyproject.toml

.DELETE_ON_ERROR:
.PHONY: run test lint asan fuzz coverage soak bench bench-bulk bench-loss bench-start bench-npm bench-rules bench-flight bench-proxy bench-dns test-wheels npm-mirror clean

run: $(STAMPS)/build
	@BIN="$(CURDIR)/$(BIN)" sh examples/run.sh $(CMD)

test: $(STAMPS)/test-system $(STAMPS)/build $(STAMPS)/test lint test-wheels npm-mirror
	$(BIN)/python -m pytest $(PYTEST)

lint: $(STAMPS)/test $(STAMPS)/build
	$(BIN)/ruff check .
	$(BIN)/mypy
	for source in $(filter %.c, $(C_SOURCES)); do \
		$(CC) -c -o /dev/null -std=gnu11 -D_GNU_SOURCE -O2 -UNDEBUG -Wall -Wextra -Werror $$source || exit 1; done

# What the tests install, childflow's own wheel apart: fetched once into build/, quick afterwards.
test-wheels: $(STAMPS)/test
	@$(BIN)/python -m tests.lab.install

npm-mirror: $(STAMPS)/test-system $(STAMPS)/test
	@$(BIN)/python -m tests.lab.npm_mirror fill

asan: $(STAMPS)/test-system $(STAMPS)/test $(STAMPS)/build
	$(BIN)/python tests/netstack/asan.py -q tests/netstack

fuzz: $(STAMPS)/fuzz $(STAMPS)/build
	$(BIN)/python -m tests.fuzz run --seconds $(SECONDS) $(addprefix --target ,$(TARGET))

coverage: $(STAMPS)/test-system $(STAMPS)/test $(STAMPS)/build
	$(BIN)/python -m tests.fuzz.coverage

soak: $(STAMPS)/test-system $(STAMPS)/build $(STAMPS)/test test-wheels
	$(BIN)/python -m pytest -m soak -s $(PYTEST)

bench: bench-start bench-bulk bench-loss bench-npm bench-rules bench-flight bench-proxy bench-dns

bench-bulk bench-loss bench-start bench-proxy bench-dns: bench-%: $(STAMPS)/test-system $(STAMPS)/build $(STAMPS)/test test-wheels
	$(BIN)/python -m benches.bench_$*

bench-npm: $(STAMPS)/test-system $(STAMPS)/build $(STAMPS)/test test-wheels npm-mirror
	$(BIN)/python -m benches.bench_npm

bench-rules: $(STAMPS)/build
	$(BIN)/python -m benches.bench_rules

bench-flight: $(STAMPS)/test
	$(BIN)/python -m benches.bench_flight

# -- set up ---------------------------------------------------------------------------------------------------------

$(STAMPS)/venv:
	@tests/system_packages.sh build
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/tools: pyproject.toml | $(STAMPS)/venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check "setuptools>=65" wheel "cffi>=1.16"
	@touch $@

$(STAMPS)/build: $(BUILD_SOURCES) $(STAMPS)/tools
	@echo "building childflow"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@

$(STAMPS)/test: pyproject.toml $(STAMPS)/tools | $(STAMPS)/build
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[test,lint]"
	@touch $@

$(STAMPS)/test-system: tests/system_packages.sh | $(STAMPS)/venv
	@tests/system_packages.sh test
	@touch $@

$(STAMPS)/fuzz: tests/system_packages.sh pyproject.toml | $(STAMPS)/test
	@tests/system_packages.sh fuzz
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[fuzz]"
	@touch $@

clean:
	rm -rf .venv build childflow.egg-info childflow/_netstack.* childflow/_sandbox.* childflow/sandbox/childflow-init
	find childflow -name '*.o' -delete
	rm -rf examples/npm-project/node_modules
