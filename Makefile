# make demo   records calls through the whole way, in containers, and shows what became of them
# make test   the whole suite
# make chaos  hundreds of recordings while everything breaks; docker/chaos.sh --help
# make load   how many actions a worker answers in a second on this machine
# make bench  workers under load, beside what this machine allows: a table with ratios; see docs/performance.md
# make dist   a release in target/dist: deb, RPM, tarball, symbols, SBOM, checksums; see docs/installing.md
# make fuzz   what comes by the broker, fuzzed for FUZZ_SECONDS (60) a target; see fuzz/README.md
#
# The first five set up what they need: a Docker engine, and the images of RabbitMQ and CouchDB. See docker/README.md.

.PHONY: help demo test chaos load bench dist fuzz up down setup check fmt clean

CARGO ?= cargo

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

demo:
	@docker/demo.sh

# The unit tests, the house, and the promises against real servers in containers.
test:
	@docker/test.sh

# Longer than the one in the suite, and another one every time: CHAOS_SEED=7 make chaos repeats one.
chaos:
	@docker/chaos.sh

# One worker, a broker and a database, and what they answer in a second.
load:
	@docker/load.sh

# Takes about a quarter of an hour. BENCH_SCALE=0.1 makes everything smaller.
bench:
	@docker/bench.sh

dist:
	@packaging/dist.sh

fuzz:
	@fuzz/run.sh

# Leaves a broker and a database running: target/services-dev.env has their addresses.
up:
	@docker/services.sh up

down:
	@docker/services.sh down

setup:
	@docker/engine.sh
	@docker/images.sh

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt:
	$(CARGO) fmt --all

clean: down
	$(CARGO) clean
