# What people and CI run. Each target installs what it needs (Debian; asks sudo where it must).

CARGO ?= cargo

.PHONY: help setup build generated man completions demo test sim fuzz conformance tls-check bench-instructions lint clean

help:
	@echo 'make demo    capture real traffic between two network namespaces and show it decoded'
	@echo 'make test    all tests (as root, or with sudo: some make network namespaces)'
	@echo 'make sim     20,000 seeds of the protocol, 20,000 of the journal'
	@echo 'make conformance   the public conformance cases of WebSocket, both roles'
	@echo 'make fuzz    every decoder and the protocol core, a minute each (SECONDS_EACH=5: a short form)'
	@echo 'make tls-check     sslscan and testssl.sh against a relay'
	@echo 'make bench-instructions   instructions of the hot functions, against those expected'
	@echo 'make lint    formatting, clippy with warnings as errors, documentation'
	@echo 'make man completions   man pages and completions of shells: target/generated/'
	@echo 'make build   release binaries: target/release/{sniffer,relay,viewer}'

setup:
	@bench/setup.sh

build: setup
	$(CARGO) build --release --locked

# Both at once: target/generated/man, target/generated/completions, and the configuration files with every key.
man completions: generated

generated: build
	for program in sniffer relay viewer; do target/release/$$program --generate target/generated || exit 1; done

demo: build
	bench/demo.sh

test: setup
	$(CARGO) build --workspace --bins --locked
	$(CARGO) test --workspace --locked

# Each takes a few minutes. A failure prints its seed, and how to run it alone.
sim:
	RINGCAST_SIM_SEEDS=20000 $(CARGO) test -p wire --locked --test sim
	RINGCAST_JOURNAL_SEEDS=20000 $(CARGO) test -p wire --locked --lib journal::model

# Seconds, once built. Needs python3-venv, and PyPI the first time.
conformance:
	CARGO='$(CARGO)' bench/conformance.sh

# A minute or two. Installs sslscan and testssl.sh.
tls-check:
	CARGO='$(CARGO)' bench/tls_check.sh

# What it finds stands in fuzz/artifacts, with the command that shows it again.
SECONDS_EACH ?= 60
fuzz:
	bench/fuzz.sh $(SECONDS_EACH)

# Half a minute, once built. bench/instructions.sh --update writes what is expected.
bench-instructions:
	CARGO='$(CARGO)' bench/instructions.sh

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items --locked

clean:
	$(CARGO) clean
	rm -rf demo-out
