# Every go command runs with the toolchain that go.mod pins, with raw public keys in its crypto/tls and with a quic-go that
# leaves its datagrams to us: env.sh finds the one, generates the others (see router/link/overlay) and writes .cache/env. A
# plain `go build` makes a program that only says how to build it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := build
.PHONY: build test check demo env fuzz fuzz-cover fuzz-long bench bench-go bench-net floods soak churn deb browser mutants clean help FORCE

FUZZTIME ?= 10s
PKG ?= ./...
with := source .cache/env &&

build: .cache/env ## the program, build/lokinetd (the default)
	@$(with) CGO_ENABLED=0 go build -ldflags "-X main.version=$(or $(VERSION),$$(git describe --tags --always --dirty 2>/dev/null || echo unknown))" -o build/lokinetd ./cmd/lokinetd

test: check ## gofmt, vet, and all tests that need no root, with the race detector (PKG=./router/bt for one package)
	@$(with) if [ "$$(go env CGO_ENABLED)" = 1 ]; then \
		go test -race -timeout 20m $(PKG); \
	else \
		echo 'There is no C compiler here (or CGO_ENABLED=0): the tests run without the race detector. Debian: apt install gcc libc6-dev'; \
		go test -timeout 20m $(PKG); \
	fi

check: .cache/env
	@$(with) bad=$$(find . \( -path ./.cache -o -path ./build \) -prune -o -name '*.go' -print | xargs -r gofmt -l); \
	[ -z "$$bad" ] || { echo "not formatted with gofmt:" $$bad >&2; exit 1; }
	@$(with) go vet $(PKG)

demo: build ## a whole private network on this machine, and a page fetched through it
	@build/lokinetd demo

env: .cache/env ## the settings of every go command here, for a shell or an editor: eval $$(make env)
	@cat .cache/env

fuzz: .cache/env ## every fuzz target for FUZZTIME (10s)
	@$(with) go run ./router/testkit/corpus fuzz -time $(FUZZTIME) $(FUZZARGS)

fuzz-cover: .cache/env ## what the stored inputs of each fuzz target cover of its decoders: 95 % or more
	@$(with) go run ./router/testkit/corpus cover $(FUZZARGS)

fuzz-long: .cache/env ## 30 CPU minutes of each fuzz target, the one with the fewest first, into docs/fuzz.md (FUZZARGS='-for 1h -only router/link')
	@$(with) go build -o build/corpus ./router/testkit/corpus && exec build/corpus long $(FUZZARGS)

# BENCH=quick measures everything once and shortly, BENCH_DOC=1 puts the report into docs/performance.md.
ifeq ($(BENCH),quick)
BENCHTIME ?= 100ms
BENCHCOUNT ?= 1
BENCHARGS ?= -rounds 1 -for 1s
endif
BENCHTIME ?= 1s
BENCHCOUNT ?= 4
BENCHARGS ?=
bench: .cache/env ## all that is measured, beside Tor and wireguard-go: 25 minutes, as root (BENCH=quick: 6 minutes)
	@status=0; \
	$(MAKE) bench-go || status=$$?; \
	$(with) go test -run '^$$' -bench '^Benchmark(Ratio|Cipher|Choose)$$' -benchmem -benchtime $(BENCHTIME) -count $(BENCHCOUNT) -timeout 5m ./router/link ./router/path ./router/seal | tee -a build/bench-go.txt || status=$$?; \
	$(MAKE) bench-net BENCHARGS="-micro build/bench-go.txt $(BENCHARGS)" || status=$$?; \
	exit $$status

bench-go: .cache/env ## all Go benchmarks (BENCHTIME=1s)
	@mkdir -p build
	@$(with) go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -timeout 20m $(PKG) | tee build/bench-go.txt

bench-net: .cache/env ## a relay alone and whole networks, beside Tor and wireguard-go (BENCHARGS='-only relay,lokinetd')
	@mkdir -p build
	@$(with) go test -tags bench -c -o build/bench.test ./cmd/lokinetd
	@$(with) exec build/bench.test -test.run '^TestBench$$' -test.timeout 0 -out build -tor .cache/tor \
		-commit "$$(git describe --tags --always --dirty 2>/dev/null || echo unknown)" $(if $(BENCH_DOC),-doc docs/performance.md) $(BENCHARGS)

floods: ## what is left of an honest flow while somebody floods its relay, with and without the bounds, into docs/floods.md: 15 minutes, as root
	@$(MAKE) bench-net BENCHARGS="-only floods -floods-doc docs/floods.md $(BENCHARGS)"

soak: .cache/env ## 200 MB each way through the demo's network, then days of simulated time in the test network; takes hours
	@$(with) go test -tags root,soak -run TestDemoNetwork -count 1 -timeout 0 -v ./cmd/lokinetd/
	@$(with) LOKINETD_SOAK_DOC="$$PWD/docs/soak.md" LOKINETD_COMMIT="$$(git describe --tags --always --dirty 2>/dev/null || echo unknown)" \
	go test -tags soak -run Soak -count 1 -timeout 0 -v ./router/testnet/
	@packaging/test/run '^TestPackageNetworkManager$$'
	@$(MAKE) churn

CHURN ?= 2h
churn: .cache/env ## what grows in CHURN (2h) of the demo's network under churn, into docs/churn.md (as root)
	@$(with) go test -tags root,soak -run '^TestChurn$$' -count 1 -timeout 0 -v ./cmd/lokinetd/ -churn $(CHURN) -churn.doc "$$PWD/docs/churn.md" \
		-churn.commit "$$(git describe --tags --always --dirty 2>/dev/null || echo unknown)"

deb: .cache/env ## the Debian package, build/lokinetd_*.deb, of the files as they are here (needs debhelper and dh-apparmor; fetches nothing)
	@rm -rf build/deb && mkdir -p build/deb/lokinetd/.cache
	@tar -c --exclude=./.cache --exclude=./build --exclude=./.git . | tar -x -C build/deb/lokinetd
	@cp -r packaging/debian build/deb/lokinetd/debian
	@if [ -d .cache/mod ]; then ln -s "$$PWD/.cache/mod" build/deb/lokinetd/.cache/mod; fi
	@$(with) GOPATH=$$(go env GOPATH) GOMODCACHE=$$(go env GOMODCACHE) GOCACHE=$$(go env GOCACHE); \
	export GOPATH GOMODCACHE GOCACHE; unset GOFLAGS GOTOOLCHAIN; cd build/deb/lokinetd && dpkg-buildpackage -b -us -uc
	@mv build/deb/*.deb build/ && rm -rf build/deb
	@ls -l build/*.deb

browser: ## a .loki page in Chromium, by a user without root and without a TUN: build/browser.png (as root; installs Chromium)
	@.ci/browser

mutants: ## take one protocol constant or defence away at a time in a copy; a test must notice, of constants one against foreign code (a table on stdout)
	@.ci/mutants

clean: ## remove what was built (a module cache of our own is read-only, hence chmod)
	@chmod -R u+w .cache 2>/dev/null || true
	@rm -rf .cache build

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1	\2/p' Makefile | sed 's/\$$\$$/$$/' | while IFS='	' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

.cache/env: FORCE
	@router/link/overlay/env.sh
