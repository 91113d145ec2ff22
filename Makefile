# The two commands are `make demo` and `make test`; both set up what is missing first.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build image demo test check format big clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: ## Install what is missing: system packages, RocksDB, test tools
	@scripts/setup

build: setup ## Build the `coffer` binary (release)
	@scripts/say "building coffer (release)"
	@cargo build --release --locked -p coffer

image: build ## Pack the program into a container image, target/image/coffer.tar, without pulling anything
	@deploy/docker/make-image target/release/coffer target/image/coffer.tar

demo: build ## Run the main job on real input: a cluster, a real tree, faults, every byte compared
	@scripts/demo target/release/coffer

test: setup ## Format, lints, dependency rules, all tests
	@scripts/test

check: setup ## Format and lints only
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

format: ## Format the code
	@cargo fmt --all

big: build ## An 8 GiB file through a cluster, with every process's memory watched
	@scripts/big target/release/coffer 8

clean: ## Remove what was built (not the RocksDB cache)
	@cargo clean
