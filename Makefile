# Palisade. `make run` to try it, `make test` for everything that CI runs.

CARGO ?= cargo
.PHONY: run test build e2e soak lint walls deny images bench fuzz help

help: ## This list
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: build ## Backend and gateway with the development profile, an administrator, and five lines to try
	@scripts/run-dev

build: ## Both programs, for development
	@scripts/need cargo cc cmake
	$(CARGO) build --locked --workspace --bins

# End-to-end tests mostly wait for a program: more of them at once than there are cores.
TEST_THREADS ?= 4
test: lint walls deny ## Everything: format, lints, walls, dependencies, unit and end-to-end tests
	@scripts/need redis-server curl openssl oathtool
	$(CARGO) build --locked --workspace --bins
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --locked --workspace -- --skip soak::
	$(MAKE) soak
	$(MAKE) fuzz FUZZ_SECONDS=$(if $(CI),60,5)

e2e: build ## The short end-to-end tests, on the real programs: about two minutes
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --locked --workspace --test it

soak: build ## The long ones: floods, large streams, ten thousand of something, chaos
	$(CARGO) test --locked --workspace --test soak -- --test-threads 1

lint: ## Format and lints; a warning fails
	$(CARGO) fmt --all --check
	@scripts/named-tests
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

bench: ## What a decision costs, on a quiet machine
	$(CARGO) bench --locked -p gateway --bench decisions

FUZZ_SECONDS ?= 60
fuzz: ## Every parser of bytes from outside for FUZZ_SECONDS (60) each, two at a time: some six minutes
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --locked --workspace --test fuzz -- --nocapture --test-threads 2
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --locked --workspace --bin backend-sqlite fuzz -- --nocapture

walls: ## Plants a violation of each wall and requires that it is refused
	@scripts/walls

deny: ## Who may use which crate, licences, duplicates of heavy crates
	@scripts/deny

images: ## Both images, with whichever of docker, podman and buildah there is
	@scripts/images
