# Few targets: `make` says them. The work is in scripts/ and can be called without make.
.PHONY: help build dist dist-check dist-arm64 test fresh-machine snap

help:
	@echo "make build          the release binary for this machine"
	@echo "make dist           dist/: tarball, Debian package, SBOM, SHA256SUMS"
	@echo "make dist-check     dist/ made twice under different circumstances, compared byte by byte"
	@echo "make dist-arm64     the same for arm64, cross-built"
	@echo "make test           ./test.sh: every test"
	@echo "make fresh-machine  install.sh and the package on fresh Debian and Ubuntu with systemd"
	@echo "make snap           check snapcraft.yaml, run its parts, pack the tree, install from it"

build:
	cargo build --release --locked --package kedge

dist:
	scripts/dist.sh

dist-check:
	scripts/dist.sh --check

dist-arm64:
	scripts/dist.sh --arch arm64

test:
	./test.sh

fresh-machine: dist
	tests/fresh-machine.sh --deb dist/kedge_*_$$(dpkg --print-architecture).deb

snap:
	tests/snap.sh
