# What one does with a checkout, each in one word; the work is in tests/scripts/.
# On a Debian 12 with Rust and root, nothing else has to be there before.

.PHONY: help run test test-vm test-hosts test-service test-packages bench lint build packages image clean

help: ## This list
	@echo "make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 10

run: ## Start a control plane, an agent and a demo task on this host; Ctrl-C ends it
	@tests/scripts/run.sh

test: ## Build and run all tests against a real engine (ARGS="..." goes to the test runner)
	@tests/scripts/test.sh $(ARGS)

test-vm: ## The same promises on a host with a kernel of its own: cgroups, reboots (BERTH_RIG is the program that makes the VM)
	@tests/scripts/vm.sh

test-hosts: ## The same promises on several hosts on one wire (BERTH_HOSTS is the program that makes them)
	@tests/scripts/hosts.sh

test-service: ## The agent as a systemd service, on a host of its own (BERTH_HOSTS is the program that makes it)
	@tests/scripts/service.sh

test-packages: ## Install, upgrade and remove the packages on a host with systemd (BERTH_HOSTS is the program that makes it)
	@tests/scripts/packages.sh

bench: ## Measure Berth against the engine's own floor (BERTH_BENCH=quick: in two minutes)
	@tests/scripts/bench.sh $(ARGS)

lint: ## Format, clippy, documentation, dependencies, scripts
	@tests/scripts/lint.sh

build: ## The two programs, optimised, in target/release
	@tests/scripts/prepare.sh build
	cargo build --release --locked -p berth-agent -p berth-controlplane

packages: ## Packages for Debian and the Red Hat family, in target/packages (BERTH_PROFILE=dev: not optimised)
	@packaging/packages.sh

image: ## The agent as an image for Docker, in target/packages and in the engine (BERTH_PROFILE=dev: not optimised)
	@packaging/image.sh

clean: ## Stop what was started here and remove all that was made in this checkout
	@tests/scripts/engine.sh stop
	@rm -rf .run .venv target
