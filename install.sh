#!/bin/sh
# Makes this machine a Kedge node: installs what is missing, builds the binary when there is none, and
# runs `kedge install` with the arguments given here. Safe to run again: it upgrades in place and
# running containers survive.
set -eu

cd "$(dirname "$0")"
RUST_NEEDED=1.95

say() { printf '%s\n' "==> $*"; }
fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'remedy: %s\n' "$2" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "Kedge runs on Linux, this is $(uname -s)"
case "$(uname -m)" in
    x86_64 | amd64) ARCH=x86_64 ;;
    aarch64 | arm64) ARCH=aarch64 ;;
    *) fail "no build of Kedge for $(uname -m)" "use a 64-bit system (amd64 or arm64)" ;;
esac
[ "$(id -u)" = 0 ] || fail "root is needed" "sudo ./install.sh"
command -v apt-get >/dev/null 2>&1 ||
    fail "apt-get was not found: this script knows Debian and Ubuntu" \
        "install containerd, runc, the CNI plugins and nftables, then run: kedge install"

# --- packages -----------------------------------------------------------------------------------

have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

have_plugins() {
    for plugin in bridge host-local portmap loopback; do
        [ -x "/usr/lib/cni/$plugin" ] || [ -x "/opt/cni/bin/$plugin" ] || return 1
    done
}

UPDATED=
apt_install() {
    say "installing packages: $*"
    if [ -z "$UPDATED" ]; then
        apt-get update -q || say "the package lists could not be refreshed; trying with the old ones"
        UPDATED=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" ||
        fail "the packages could not be installed" "see apt-get's message above"
}

# containerd.io (Docker's package) brings containerd and runc as well and must not be replaced.
packages=
have containerd || packages="$packages containerd"
have runc || packages="$packages runc"
have_plugins || packages="$packages containernetworking-plugins"
have nft || packages="$packages nftables"
have conntrack || packages="$packages conntrack"
[ -e /etc/ssl/certs/ca-certificates.crt ] || packages="$packages ca-certificates"
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || apt_install $packages

# --- the binary ---------------------------------------------------------------------------------

# Succeeds when $1 is an ELF file for this machine (e_machine at offset 18: 62 amd64, 183 arm64).
right_architecture() {
    [ -f "$1" ] || return 1
    [ "$(head -c 4 "$1" | od -An -tx1 | tr -d ' \n')" = 7f454c46 ] || return 1
    machine=$(od -An -tu1 -j18 -N1 "$1" | tr -d ' \n')
    case "$ARCH" in
        x86_64) [ "$machine" = 62 ] ;;
        aarch64) [ "$machine" = 183 ] ;;
    esac
}

cargo_is_new_enough() {
    version=$("$1" --version 2>/dev/null | sed -n 's/^cargo \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] || return 1
    [ "$(printf '%s\n%s\n' "$RUST_NEEDED" "$version" | sort -V | head -n 1)" = "$RUST_NEEDED" ]
}

# The caller's own toolchain is used when sudo hides it.
find_cargo() {
    caller_home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    for candidate in "$(command -v cargo || true)" "$HOME/.cargo/bin/cargo" "$caller_home/.cargo/bin/cargo"; do
        [ -n "$candidate" ] && [ -x "$candidate" ] || continue
        if [ "$candidate" = "$caller_home/.cargo/bin/cargo" ] && [ "$caller_home" != "$HOME" ]; then
            export CARGO_HOME="$caller_home/.cargo" RUSTUP_HOME="${RUSTUP_HOME:-$caller_home/.rustup}"
        fi
        if cargo_is_new_enough "$candidate"; then
            CARGO=$candidate
            return 0
        fi
    done
    return 1
}

build() {
    tools=
    have gcc || tools="$tools gcc libc6-dev"
    have make || tools="$tools make"
    have protoc || tools="$tools protobuf-compiler"
    # shellcheck disable=SC2086
    [ -z "$tools" ] || apt_install $tools
    if ! find_cargo; then
        have curl || apt_install curl
        say "installing Rust with rustup (no cargo $RUST_NEEDED or newer was found)"
        unset CARGO_HOME RUSTUP_HOME
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --profile minimal --no-modify-path ||
            fail "rustup could not be installed" "install Rust $RUST_NEEDED yourself: https://rustup.rs"
        CARGO=$HOME/.cargo/bin/cargo
    fi
    PATH="$(dirname "$CARGO"):$PATH"
    export PATH
    # Kernels of arm64 boards have pages of 4, 16 or 64 KiB; an allocator built for the largest suits all.
    [ "$ARCH" != aarch64 ] || export JEMALLOC_SYS_WITH_LG_PAGE=16
    say "building the release binary; this takes several minutes on a small board"
    "$CARGO" build --release --locked --package kedge --target "$ARCH-unknown-linux-gnu" ||
        fail "the build failed" "see cargo's message above; at least 2 GiB of memory and swap are needed"
    BINARY=${CARGO_TARGET_DIR:-target}/$ARCH-unknown-linux-gnu/release/kedge
    # What root built in the caller's folder belongs to the caller.
    if [ -n "${SUDO_USER:-}" ] && [ -d "${CARGO_TARGET_DIR:-target}" ]; then
        chown -R "$SUDO_USER" "${CARGO_TARGET_DIR:-target}" 2>/dev/null || true
    fi
}

BINARY=
for candidate in ./kedge "dist/kedge-$ARCH" dist/kedge; do
    if right_architecture "$candidate"; then
        BINARY=$candidate
        say "using the ready-made binary $candidate"
        break
    fi
done
[ -n "$BINARY" ] || build
right_architecture "$BINARY" || fail "$BINARY is not a binary for $ARCH"

[ -x "$BINARY" ] || chmod 0755 "$BINARY"
"$BINARY" version >/dev/null || fail "$BINARY does not run on this machine"

# --- the node -----------------------------------------------------------------------------------

# It copies itself to /usr/local/bin, after it has found that this machine can be a node.
say "running kedge install"
exec "$BINARY" install "$@"
