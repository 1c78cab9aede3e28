# The first commands of a newcomer: `make demo`, `make test`. Each installs what it needs and says why.

SHELL := /bin/bash -eu -o pipefail
.DEFAULT_GOAL := help
.PHONY: help demo demo-postgres deb test test-long bench bench-postgres bench-failover bench-notify fuzz deny need-build need-deb need-postgresql need-test need-bench-postgres need-bench-failover need-deny need-fuzz

# A mount needs root; whoever is not root is asked for it by sudo.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Tests start nodes, databases and clients: more of them at a time than processors, and they wait for one another's disk.
TEST_THREADS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: need-build ## a pair on this machine, a database on it, a primary that dies: takes half a minute, after the build
	cargo build --release -p nasd
	$(SUDO) target/release/nasd demo

demo-postgres: need-build need-postgresql ## the same with PostgreSQL and pgbench
	cargo build --release -p nasd
	$(SUDO) target/release/nasd demo --postgres

deb: need-build need-deb ## a Debian package in target/debian/: binary, service, manual pages, completions
	cargo build --release --locked -p nasd
	packaging/build target/release/nasd

test: need-test ## format, lints, build and every test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo build --workspace --all-targets
	cargo test --workspace -- --test-threads=$(TEST_THREADS)

test-long: export NASD_TEST_LONG = 1
test-long: need-test ## the same tests for longer: hundreds of kills, more random operations
	cargo build --workspace --all-targets
	cargo test --workspace -- --test-threads=$(TEST_THREADS)

bench: need-build ## how fast it is beside the filesystem below: a table
	cargo build --release -p nasd -p nasd-tests --bins
	$(SUDO) target/release/bench

# Half an hour; QUICK=1: two minutes. ROUNDS, PG_SECONDS (of a run), SCALE and SETUPS say more exactly what is wanted.
bench-postgres: need-bench-postgres ## what PostgreSQL does with its log in two places: by nasd, by itself, by others
	cargo build --release -p nasd -p nasd-tests --bins
	$(SUDO:sudo=sudo --preserve-env) target/release/bench_postgres

# Two minutes; COMMITS=100: some seconds.
bench-notify: need-build ## how long after a commit the secondary's consumers hear of it: a table
	cargo build --release -p nasd -p nasd-tests --bins
	$(SUDO:sudo=sudo --preserve-env) target/release/bench_notify

# A quarter of an hour; ROUNDS=3: three minutes. TIMEOUTS ("1s 10s") says which.
bench-failover: need-bench-failover ## how long clients wait when the primary is killed: a table
	cargo build --release -p nasd -p nasd-tests --bins
	$(SUDO:sudo=sudo --preserve-env) target/release/bench_failover

# Needs the nightly compiler, which every rustup can install: the sanitizers are there only.
FUZZ_SECONDS ?= 100
fuzz: need-fuzz ## any bytes as a transaction and from a peer, FUZZ_SECONDS (100) each
	cd fuzz && for target in transaction wire; do cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS); done

# The database of advisories is fetched; without a network the rest is checked all the same.
deny: need-deny ## licences and sources of the dependencies, and known holes in them
	cargo deny check licenses bans sources
	@if cargo deny fetch db >/dev/null 2>&1; then cargo deny check advisories; \
	else echo "make deny: the advisory database can't be reached: known holes were not looked for"; fi

need-build:
	@.ci/need cargo gcc protoc fuse

need-postgresql:
	@.ci/need postgresql

need-test: need-deb
	@.ci/need cargo gcc protoc fuse root lintian xfsprogs e2fsprogs acl attr fio sqlite3 faketime mariadb-server-core mariadb-client-core postgresql etcd-server etcd-client prometheus haproxy iproute2 nftables docker.io docker-compose debootstrap systemd-container samba smbclient nfs-ganesha-vfs libnfs-utils rpcbind python3-venv user-mode-linux kmod nfs-common cifs-utils
	@if [ -x tests/install-tools.sh ]; then tests/install-tools.sh; fi

need-bench-postgres:
	@.ci/need cargo gcc protoc fuse postgresql iproute2 glusterfs-server

need-bench-failover:
	@.ci/need cargo gcc protoc fuse postgresql etcd-server etcd-client iproute2 nftables

need-fuzz:
	@.ci/need cargo gcc protoc
	@cargo +nightly --version >/dev/null || { echo "install the nightly compiler: rustup toolchain install nightly"; exit 1; }
	@cargo fuzz --version >/dev/null 2>&1 || { \
	  echo "cargo-fuzz (runs the fuzz targets): installing it"; cargo install --locked cargo-fuzz; }

need-deb:
	@.ci/need cargo dpkg-dev
	@cargo deb --version >/dev/null 2>&1 || { \
	  echo "cargo-deb (makes Debian packages): installing it"; cargo install --locked cargo-deb; }

need-deny:
	@.ci/need cargo
	@cargo deny --version >/dev/null 2>&1 || { \
	  echo "cargo-deny (looks at the dependencies' licences): installing it"; cargo install --locked cargo-deny; }
