# Everything that a developer does with shimd; `make` alone lists it. Nothing has to be prepared: what a target
# needs from Debian or from PyPI it installs itself, once (Debian packages as root only; otherwise it names them).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
READY := $(VENV)/.ready

# Debian packages by purpose; NAME=PROOF as .ci/tools/need-packages takes it.
RUN_PACKAGES := python3-venv=/usr/share/doc/python3-venv libseccomp2 busybox-static=busybox
TEST_PACKAGES := $(RUN_PACKAGES) debootstrap runc=runc crun=crun shellcheck=shellcheck util-linux=unshare uidmap=newuidmap iproute2=ip \
	golang-github-containers-common=/usr/share/containers/seccomp.json procps=ps
BENCH_PACKAGES := $(RUN_PACKAGES) runc=runc crun=crun
# Programs of others that the tests with containerd, Docker and Podman drive.
PEER_PACKAGES := containerd=containerd containernetworking-plugins=/usr/lib/cni/bridge docker.io=dockerd podman=podman
LAB_PACKAGES := user-mode-linux=linux.uml systemd=/lib/systemd/systemd dbus=dbus-daemon apparmor=apparmor_parser \
	checkpolicy=checkpolicy

PYTEST := $(PYTHON) -m pytest
ROOT_TESTS := tests/kernel tests/container tests/daemon
# Those under the programs of others, which take longer than they work: they have to wait for each other.
PEER_TESTS := tests/containerd tests/interop
PEERS := $${SHIMD_TEST_CACHE:-/var/cache/shimd-test}/peers
# Tests that lack it are skipped, with the reason.
UNFETCHED = echo 'NOT TESTED: what tests/lab/peers could not fetch' >&2

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# --- To use it ---

.PHONY: venv
venv: $(READY) ## Make the Python environment in .venv

# The scripts are copied into the environment; all else runs from here.
$(READY): pyproject.toml clients/containerd_shim/containerd-shim-shimd-v2 shimd/cli/shimrun
	@.ci/tools/need-packages $(RUN_PACKAGES)
	@.ci/tools/make-venv "$(VENV)"
	@touch "$@"

.PHONY: demo
demo: venv ## Show it: a daemon, a container, an exec, the plan and the timing; cleans up
	@VENV="$(VENV)" deploy/demo.sh

# --- Tests ---

.PHONY: test
test: venv ## All tests that run on this machine, with all linters (those that need root are skipped without it)
	@.ci/tools/need-packages $(TEST_PACKAGES) $(PEER_PACKAGES) $(LAB_PACKAGES)
	@[[ $$(id -u) != 0 ]] || $(PYTHON) -m tests.support.rootfs
	@[[ $$(id -u) != 0 ]] || tests/lab/peers "$(PEERS)" containerd-1.7 containerd-2 docker-26 || $(UNFETCHED)
	@.ci/tools/side-by-side '$(PYTEST) --slow; $(PYTEST) --slow $(PEER_TESTS)' 'PYTEST="$(PYTEST)" tests/lab/run' \
		'$(PYTEST) --slow $(ROOT_TESTS)'

.PHONY: test-unit
test-unit: venv ## Tests without privileges, and the linters: quick and safe
	@$(PYTEST)

.PHONY: test-root
test-root: venv ## Tests that make real containers: needs root
	@.ci/tools/need-packages $(TEST_PACKAGES)
	@[[ $$(id -u) == 0 ]] || { echo 'make test-root: needs root, for namespaces, mounts and cgroups' >&2; exit 1; }
	@$(PYTHON) -m tests.support.rootfs
	@$(PYTEST) $(ROOT_TESTS)

.PHONY: test-lab
test-lab: venv ## Tests in small virtual machines with cgroup v2, AppArmor, SELinux: needs root (an hour)
	@.ci/tools/need-packages $(TEST_PACKAGES) $(PEER_PACKAGES) $(LAB_PACKAGES)
	@[[ $$(id -u) == 0 ]] || { echo 'make test-lab: needs root, as the machines use its files' >&2; exit 1; }
	@$(PYTHON) -m tests.support.rootfs
	@tests/lab/peers "$(PEERS)" containerd-1.7 docker-26 || $(UNFETCHED)
	@PYTEST="$(PYTEST)" tests/lab/run --whole

.PHONY: test-containerd
test-containerd: venv ## Tests with stock containerds of three versions, the newer ones fetched once: needs root
	@.ci/tools/need-packages $(TEST_PACKAGES) $(PEER_PACKAGES)
	@[[ $$(id -u) == 0 ]] || { echo 'make test-containerd: needs root, for containerd' >&2; exit 1; }
	@tests/lab/peers "$(PEERS)" containerd-1.7 containerd-2 || $(UNFETCHED)
	@$(PYTEST) --slow tests/containerd

.PHONY: test-interop
test-interop: venv ## Tests with stock Docker, one version fetched once, and Podman: needs root
	@.ci/tools/need-packages $(TEST_PACKAGES) $(PEER_PACKAGES)
	@[[ $$(id -u) == 0 ]] || { echo 'make test-interop: needs root, for dockerd and podman' >&2; exit 1; }
	@tests/lab/peers "$(PEERS)" containerd-1.7 docker-26 || $(UNFETCHED)
	@INTEROP=whole $(PYTEST) --slow tests/interop

.PHONY: lint
lint: venv ## Linters, formatter and type checker: what tests/repo runs of them
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(MAKE) --no-print-directory types

.PHONY: types
types: venv ## The type checker
	@$(BIN)/mypy

# --- Generated code ---

# Where the generated modules go; the test for drift writes them elsewhere and compares.
OUT ?= .
PROTOC = $(PYTHON) -m grpc_tools.protoc -I protos
SERVICES = $(addprefix protos/shimd/api/,containerd/sandbox.proto containerd/task_v2.proto containerd/task_v3.proto v1/runtime.proto)

.PHONY: protos
protos: venv ## Write shimd/api/ from protos/
	@$(PROTOC) --python_out=$(OUT) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:$(OUT) protos/shimd/api/*/*.proto
	@$(PROTOC) --grpc_python_out=$(OUT) --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:$(OUT) $(SERVICES)

# --- Measure, tidy ---

.PHONY: bench
bench: venv ## Measure against Debian's runc and crun; writes bench/results.json and a table (needs root)
	@.ci/tools/need-packages $(BENCH_PACKAGES)
	@$(PYTHON) -m shimd.image
	@$(PYTHON) -m bench.run

.PHONY: bench-containerd
bench-containerd: venv ## The same under containerd, against its own shim; ARGS=--docs writes into docs/performance.md (needs root)
	@.ci/tools/need-packages $(BENCH_PACKAGES) $(PEER_PACKAGES)
	@$(PYTHON) -m bench.containerd $(ARGS)

.PHONY: clean
clean: ## Remove what the targets made, the environment too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/*results.json
	find . -name __pycache__ -prune -exec rm -rf {} +
