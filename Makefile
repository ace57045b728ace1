# unipod. `make demo` shows it, `make test` proves it.
#
#   make            build bin/unipod (and the pause programs it carries)
#   make test       run every test, as root, with the race detector
#   make test-faults   kill the node at every point of a pod's life
#   make soak       a thousand pods live and end; nothing of them may stay (LIVES=1000)
#   make test-containerd   play the scenarios with containerd as the runtime
#   make test-kubectl  a session with every verb of kubectl, stock and built in
#   make test-cri   run critest, the CRI's conformance tool
#   make test-kubelet   run pods under a real kubelet, alone and in a cluster
#   make test-systemd   unipod as systemd's service in a virtual machine, rebooted and cut off
#   make test-operator   an operator and helm charts by others, on the API
#   make demo       play the example pod
#   make bench      measure it, beside the floor and the peers installed here
#   make fuzz       fuzz every parser of foreign input (FUZZTIME=10s each)
#   make lint       gofmt, go vet, shellcheck, staticcheck
#   make install    into $(DESTDIR)$(PREFIX)/bin, with a systemd unit; `make uninstall` undoes it

GO        ?= go
PREFIX    ?= /usr/local
FUZZTIME  ?= 10s
LIVES     ?= 1000
TESTFLAGS ?=
PKG       ?= ./...
ARGS      ?=

# The signature library is built in pure Go, so that the binary is static.
TAGS    := containers_image_openpgp
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# What kubectl and the API say they are: the Kubernetes they were built from.
KUBE    := $(shell sed -n 's/^\tk8s\.io\/kubernetes \(v[0-9.]*\)$$/\1/p' go.mod)
kube     = -X k8s.io/component-base/version.$(1)
LDFLAGS := -s -w -X unipod.dev/unipod/internal/version.Version=$(VERSION) \
	$(call kube,gitVersion=$(KUBE)) $(call kube,gitMajor=1) $(call kube,gitMinor=$(word 2,$(subst ., ,$(KUBE)))) \
	$(call kube,gitCommit=$(VERSION)) $(call kube,gitTreeState=clean) $(call kube,buildDate=$(shell git log -1 --format=%cd --date=format:%Y-%m-%dT%H:%M:%SZ 2>/dev/null || echo 1970-01-01T00:00:00Z))
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: all pause build arm64 arm64-runtime test test-faults test-kubectl soak test-containerd test-cri test-kubelet test-systemd test-operator test-arm64 demo bench figures fuzz lint install uninstall clean

all: build

pause:
	@scripts/deps.sh build
	$(MAKE) -C pause

build: pause
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/unipod ./cmd/unipod

arm64:
	@scripts/deps.sh build arm64
	$(MAKE) -C pause
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/unipod-arm64 ./cmd/unipod

# Of it, what has to do with the machine: all that makes containers. What is above
# is Kubernetes' portable code, and takes minutes.
arm64-runtime:
	@scripts/deps.sh build arm64
	$(MAKE) -C pause
	CGO_ENABLED=0 GOARCH=arm64 $(GO) build -trimpath -tags $(TAGS) ./internal/node/... ./internal/engine/...

# Two packages at a time: tests share one kernel, and a few of them wait for it.
# An ordinary user's tests are compiled as that user and run as root.
test: build
	@scripts/deps.sh test
	CGO_ENABLED=1 $(GO) test -race -tags $(TAGS) -p 2 -count=1 -timeout 20m $(if $(SUDO),-exec 'sudo -E') $(TESTFLAGS) $(PKG)

# The node killed at every point of a pod's life, one after the other.
test-faults: build
	@scripts/deps.sh test
	CGO_ENABLED=1 $(GO) test -race -tags $(TAGS),faults -count=1 -timeout 20m $(if $(SUDO),-exec 'sudo -E') -run TestKilledAnywhere ./internal/runtime

# Pods in great number, through one node.
soak: build
	@scripts/deps.sh test
	UNIPOD_SOAK_LIVES=$(LIVES) $(GO) test -tags $(TAGS) -count=1 -timeout 30m $(if $(SUDO),-exec 'sudo -E') -v -run TestSoak ./test/scenario

# The engine and every scenario on a runtime that isn't ours.
test-containerd: build
	@scripts/deps.sh test containerd
	UNIPOD_SCENARIO_RUNTIME=containerd CGO_ENABLED=1 $(GO) test -race -tags $(TAGS) -count=1 -timeout 10m $(if $(SUDO),-exec 'sudo -E') -run 'TestContainerd|TestScenarios|TestNodeKilled|TestByKubectl' ./internal/engine ./test/scenario

# Every verb of kubectl against a node: unipod's own commands, kubectl built from the
# module, and the one on PATH.
test-kubectl: build
	@scripts/deps.sh demo
	$(SUDO) env PATH="$$PATH" test/kubectl/run.sh bin/unipod

# The CRI's public conformance tool. CRITEST_IMAGE_SCRIPT names the script that makes
# its images; see test/critest/run.sh.
test-cri: build
	@scripts/deps.sh cri
	$(SUDO) env CRITEST_IMAGE_SCRIPT=$(CRITEST_IMAGE_SCRIPT) PATH="$$PATH" test/critest/run.sh bin/unipod

# A real kubelet over the runtime. Building it takes minutes the first time.
test-kubelet: build
	@scripts/deps.sh kubelet
	$(SUDO) env PATH="$$PATH" test/kubelet/run.sh bin/unipod
	$(SUDO) env PATH="$$PATH" test/kubelet/cluster.sh bin/unipod

# The service as `make install` installs it, on a Debian with systemd and logind.
test-systemd: build
	@scripts/deps.sh demo vm
	$(SUDO) env PATH="$$PATH" test/vm/systemd.sh bin/unipod

# An operator and helm charts by others, against the API of `unipod serve`.
test-operator: build
	@scripts/deps.sh operator
	$(SUDO) env PATH="$$PATH" test/operator/run.sh bin/unipod

# pause's arm64 program under qemu-user, driven by the Go client.
test-arm64:
	@scripts/deps.sh build arm64 test
	$(MAKE) -C pause
	CGO_ENABLED=1 $(GO) test -race -count=1 -v -run ARM64 $(if $(SUDO),-exec 'sudo -E') ./internal/pause

demo: build
	@scripts/deps.sh demo
	@$(SUDO) examples/demo/run.sh $(CURDIR)/bin/unipod

bench: build
	@scripts/deps.sh demo
	@$(SUDO) bench/run.sh $(CURDIR)/bin/unipod $(ARGS)

# The same into both READMEs.
figures: build
	@scripts/deps.sh demo
	@$(SUDO) bench/figures.sh $(CURDIR)/bin/unipod $(ARGS)

fuzz:
	@scripts/deps.sh build fuzz
	@FUZZTIME=$(FUZZTIME) TAGS=$(TAGS) scripts/fuzz.sh

lint: pause
	@scripts/deps.sh lint
	@GO=$(GO) TAGS=$(TAGS) scripts/lint.sh

# The unit goes where systemd looks: below $(PREFIX) it does for /usr and
# /usr/local, else name another with UNITDIR.
UNITDIR ?= $(PREFIX)/lib/systemd/system

install: build
	install -D -m 0755 bin/unipod $(DESTDIR)$(PREFIX)/bin/unipod
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|@BINDIR@|$(PREFIX)/bin|' systemd/unipod.service > $(DESTDIR)$(UNITDIR)/unipod.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/unipod.service

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/unipod $(DESTDIR)$(UNITDIR)/unipod.service

clean:
	rm -rf bin
	$(MAKE) -C pause clean
