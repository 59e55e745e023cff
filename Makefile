# The commands of this project. `make test` and `make demo` set up what they need.
.PHONY: all setup object demo test unit bench detection check format docs clean

all: object

object:
	$(MAKE) -s -C kern

setup: .setup-stamp

.setup-stamp: pyproject.toml setup.py scripts/setup.sh
	scripts/setup.sh
	touch $@

demo: setup object
	sudo=; [ "$$(id -u)" -eq 0 ] || sudo=sudo; $$sudo scripts/demo.sh

# Everything: kernel tests need root, and fail where they cannot run.
test: setup object
	sudo=; [ "$$(id -u)" -eq 0 ] || sudo="sudo --preserve-env=FLOWMON_FUZZ_SECONDS,FLOWMON_FUZZ_SEED"; \
	$$sudo env FLOWMON_REQUIRE_KERNEL=1 .venv/bin/python -m pytest $(PYTEST)

# Speed, measured side by side: a table, and build/bench.json. Under ten minutes. PARTS="per-packet collector" are some
# of it, ROUNDS=N more or fewer turns, AGAINST=COMMIT compares with the programs and the collector of a commit.
bench: setup object
	sudo=; [ "$$(id -u)" -eq 0 ] || sudo=sudo; \
	$$sudo .venv/bin/python bench/run.py $(PARTS) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(AGAINST),--against $(AGAINST))

# How good the detectors are: seeded scenarios through `flowmon -r`. Some minutes.
detection: setup object
	sudo=; [ "$$(id -u)" -eq 0 ] || sudo=sudo; \
	$$sudo .venv/bin/python bench/detection.py

# What needs no root.
unit: setup object
	.venv/bin/python -m pytest -m "not kernel" $(PYTEST)

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	shellcheck -x scripts/*.sh examples/*.sh .ci/run
	clang-format --dry-run --Werror kern/*.h kern/*.c bench/*.c
	.venv/bin/python -m flowmon.elements | diff -u docs/information-elements.md -
	.venv/bin/python -m flowmon.ipfix | diff -u docs/ipfix-elements.md -
	.venv/bin/python -m flowmon.analysers | diff -u docs/analysers.md -
	.venv/bin/python -m flowmon.features | diff -u docs/packet-feature-columns.md -

format:
	.venv/bin/ruff check --fix --silent . || true
	.venv/bin/ruff format --quiet .
	clang-format -i kern/*.h kern/*.c bench/*.c

docs:
	.venv/bin/python -m flowmon.elements > docs/information-elements.md
	.venv/bin/python -m flowmon.ipfix > docs/ipfix-elements.md
	.venv/bin/python -m flowmon.analysers > docs/analysers.md
	.venv/bin/python -m flowmon.features > docs/packet-feature-columns.md

clean:
	$(MAKE) -s -C kern clean
	rm -rf .venv .setup-stamp build *.egg-info
