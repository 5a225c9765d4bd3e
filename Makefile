# make setup   check and install what building, running and testing needs
# make run     serve on http://127.0.0.1:10000 through a real Envoy
#              CHAIN=ext_authz|ratelimit|ai-protocol  STORE=memory|redis  ENVOY=/path/to/envoy
# make traffic send two minutes of sample traffic to what make run serves
#              FLAGS='-rate 15 -duration 2m -seed 1'
# make test    set up and run every test
# make chaos   break Redis, the network, Envoy, instances and the disk under load, send floods of
#              a million keys, and print what became of it: about ten minutes. make test has a
#              short form of it
# make lint    check the style
# make fuzz    look for inputs that break the parsers (FUZZTIME=30s each)
# make bench   measure what a request costs beside what TierGate is compared with, in less than
#              five minutes, and write docs/performance.md
#              FLAGS="-rounds 1 -only 'envoyproxy|requests, redis'" measures less, and only prints
# make gobench measure the decision in the process, what counting for the dashboards adds to it,
#              and what settling costs Envoy and us

GO ?= go
TOOL = $(GO) tool -modfile=tools/go.mod
FUZZTIME ?= 30s
# Of this directory alone: the linter would report what it has cached of another
# checkout under that one's paths, which the exclusions do not know.
export GOLANGCI_LINT_CACHE = $(CURDIR)/.cache/golangci-lint

.PHONY: build setup run traffic test chaos lint fmt fuzz bench gobench clean

build:
	$(GO) build -trimpath -o bin/ ./cmd/...

setup:
	@scripts/setup.sh

run: build
	@exec bin/devstack run

traffic: build
	@exec bin/devstack traffic $(FLAGS)

test: setup build
	@$(GO) test -race -timeout 20m $$($(GO) list ./... | grep -v /internal/e2e$$)
	@$(GO) test -race -count 1 -timeout 20m -parallel 6 ./internal/e2e
	@cd examples && $(GO) test -count 1 -timeout 10m ./...
	@cd bench && $(GO) test -count 1 -timeout 10m ./...

# By itself on the machine: it measures.
chaos: setup
	@$(GO) test -v -count 1 -timeout 60m -run '^(TestFaults|TestFloodsLeaveMemoryFlat)$$' ./internal/e2e -whole -flood 1000000

lint:
	@$(TOOL) golangci-lint run ./...
	@for module in examples bench bench/ratelimit; do \
	  (cd $$module && $(GO) tool -modfile=$(CURDIR)/tools/go.mod golangci-lint run --config $(CURDIR)/.golangci.yml ./...) || exit 1; \
	done

fmt:
	@$(TOOL) golangci-lint fmt ./...
	@for module in examples bench bench/ratelimit; do \
	  (cd $$module && $(GO) tool -modfile=$(CURDIR)/tools/go.mod golangci-lint fmt --config $(CURDIR)/.golangci.yml ./...) || exit 1; \
	done

fuzz:
	@set -e; for package in $$(grep -rl '^func Fuzz' --include='*_test.go' internal | xargs -n1 dirname | sort -u); do \
	  for name in $$($(GO) test -list '^Fuzz' ./$$package | grep '^Fuzz'); do \
	    echo "$$package $$name"; $(GO) test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x ./$$package; \
	  done; \
	done

# By itself on the machine: it measures.
bench: setup build
	@cd bench && $(GO) build -trimpath -o ../bin/ .
	@cd bench/ratelimit && $(GO) build -trimpath -o ../../bin/ratelimit github.com/envoyproxy/ratelimit/src/service_cmd
	@cd bench/ratelimit && $(GO) build -trimpath -o ../../bin/ratelimit-check .
	@bin/bench table -root . -tiergate bin/tiergate -ratelimit bin/ratelimit -ratelimit-check bin/ratelimit-check $(or $(FLAGS),-out docs/performance.md)

gobench:
	$(GO) test -run '^$$' -bench . -benchmem ./internal/envoyapi ./internal/store ./internal/usage ./cmd/tiergate
	$(GO) test -run '^$$' -bench Settlement -benchtime 20000x -timeout 20m ./internal/e2e

clean:
	rm -rf bin .cache
