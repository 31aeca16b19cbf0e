# What people and CI run. Each target installs what it needs (Debian; asks sudo where it must).

CARGO ?= cargo

.PHONY: help setup build generated man completions install uninstall deb try-package demo test sim fuzz conformance tls-check bench-instructions soak lint clean

help:
	@echo 'make demo    capture real traffic between two network namespaces and show it decoded'
	@echo 'make test    all tests (as root, or with sudo: some make network namespaces)'
	@echo 'make sim     20,000 seeds of the protocol, 20,000 of the journal'
	@echo 'make conformance   the public conformance cases of WebSocket, both roles'
	@echo 'make fuzz    every decoder and the protocol core, a minute each (SECONDS_EACH=5: a short form)'
	@echo 'make tls-check     sslscan and testssl.sh against a relay'
	@echo 'make bench-instructions   instructions of the hot functions, against those expected'
	@echo 'make soak    ten minutes with churn of every part (MINUTES=60, SEED=7): nothing grows, the ledger adds up'
	@echo 'make lint    formatting, clippy with warnings as errors, documentation'
	@echo 'make man completions   man pages and completions of shells: target/generated/'
	@echo 'make install, make uninstall   with systemd units, man pages, completions; DESTDIR, PREFIX, SYSCONFDIR'
	@echo 'make deb     a Debian package: target/debian/ringcast_*.deb'
	@echo 'make try-package   installs it in a clean Debian that systemd boots, and tries everything there (root, network)'
	@echo 'make build   release binaries: target/release/{sniffer,relay,viewer}'

setup:
	@bench/setup.sh

# No path of this machine is to be in what is built, so that it can be the same elsewhere.
CARGO_HOME ?= $(HOME)/.cargo
build: export RUSTFLAGS := $(RUSTFLAGS) --remap-path-prefix=$(CURDIR)=/ringcast --remap-path-prefix=$(CARGO_HOME)=/cargo
build: setup
	$(CARGO) build --release --locked -p sniffer -p relay -p viewer

# Both at once: target/generated/man, target/generated/completions, and the configuration files with every key.
man completions: generated

generated: build
	for program in sniffer relay viewer; do target/release/$$program --generate target/generated || exit 1; done

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
documents = $(share)/doc/ringcast
share = $(DESTDIR)$(PREFIX)/share
library = $(DESTDIR)$(PREFIX)/lib
programs = sniffer relay viewer
units = $(notdir $(wildcard systemd/ringcast-*))

# Configuration that is there stays. Starts nothing, makes no user: systemd-sysusers, systemd-tmpfiles --create do.
install: generated
	install -d $(DESTDIR)$(PREFIX)/bin $(library)/systemd/system $(DESTDIR)$(SYSCONFDIR)/ringcast
	install -m 755 $(programs:%=target/release/%) $(DESTDIR)$(PREFIX)/bin/
	for unit in $(units); do \
	  sed 's|/usr/bin/|$(PREFIX)/bin/|; s|/etc/ringcast|$(SYSCONFDIR)/ringcast|' "systemd/$$unit" > "$(library)/systemd/system/$$unit" || exit 1; \
	  chmod 644 "$(library)/systemd/system/$$unit"; done
	install -D -m 644 systemd/ringcast.sysusers $(library)/sysusers.d/ringcast.conf
	install -D -m 644 systemd/ringcast.tmpfiles $(library)/tmpfiles.d/ringcast.conf
	for program in sniffer relay; do \
	  file=$(DESTDIR)$(SYSCONFDIR)/ringcast/$$program.toml; \
	  [ -e $$file ] || install -m 644 systemd/$$program.toml $$file || exit 1; done
	install -d $(documents)/examples
	install -m 644 README.md SECURITY.md $(documents)/
	install -m 644 CHANGELOG.md $(documents)/changelog
	install -m 644 systemd/viewer.toml $(documents)/examples/
	install -d $(share)/man/man1 $(share)/bash-completion/completions $(share)/zsh/vendor-completions $(share)/fish/vendor_completions.d
	install -m 644 target/generated/man/*.1 $(share)/man/man1/
	for program in $(programs); do \
	  install -m 644 target/generated/completions/$$program.bash $(share)/bash-completion/completions/$$program && \
	  install -m 644 target/generated/completions/_$$program $(share)/zsh/vendor-completions/ && \
	  install -m 644 target/generated/completions/$$program.fish $(share)/fish/vendor_completions.d/ || exit 1; done

# Configuration, keys and spools stay.
uninstall:
	rm -f $(programs:%=$(DESTDIR)$(PREFIX)/bin/%) $(units:%=$(library)/systemd/system/%)
	rm -f $(library)/sysusers.d/ringcast.conf $(library)/tmpfiles.d/ringcast.conf
	for program in $(programs); do rm -f $(share)/man/man1/$$program.1 $(share)/man/man1/$$program-*.1 \
	  $(share)/bash-completion/completions/$$program $(share)/zsh/vendor-completions/_$$program \
	  $(share)/fish/vendor_completions.d/$$program.fish; done
	rm -rf $(documents)

# target/debian/ringcast_*.deb, and what lintian says of it.
deb: generated
	CARGO='$(CARGO)' debian/build.sh

# Minutes, as root, with Debian's archive: the package in a clean root that systemd boots in a container of its own.
try-package: deb
	systemd/try.sh

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

MINUTES ?= 10
SEED ?= 1
soak:
	CARGO='$(CARGO)' bench/soak.sh --minutes $(MINUTES) --seed $(SEED)

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items --locked

clean:
	$(CARGO) clean
	rm -rf demo-out
