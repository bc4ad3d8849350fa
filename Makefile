# Palisade. `make run` to try it, `make test` for everything that CI runs.

CARGO ?= cargo
.PHONY: run test build lint walls deny images bench help

help: ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: build ## Backend and gateway with the development profile, an administrator, and five lines to try
	@scripts/run-dev

build: ## Both programs, for development
	@scripts/need cargo cc cmake
	$(CARGO) build --locked --workspace --bins

test: lint walls deny ## Everything: format, lints, walls, dependencies, unit and end-to-end tests
	@scripts/need redis-server curl openssl oathtool
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace

lint: ## Format and lints; a warning fails
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

bench: ## What a decision costs, on a quiet machine
	$(CARGO) bench --locked -p gateway --bench decisions

walls: ## Plants a violation of each wall and requires that it is refused
	@scripts/walls

deny: ## Who may use which crate, licences, duplicates of heavy crates
	@scripts/deny

images: ## Both images, with whichever of docker, podman and buildah there is
	@scripts/images
