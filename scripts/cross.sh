#!/usr/bin/env bash
# Kedge for another architecture, built on this one.
#
#   scripts/cross.sh arm64          builds the release binary and prints its path
#   scripts/cross.sh arm64 test     runs the unit tests of the crates that need no kernel, under qemu-user
#   scripts/cross.sh arm64 check    says whether it can be done here; exit code 1 and the reason if not
#
# With a Rust standard library for the target (rustup target add) and Debian's cross compiler this
# machine's own cargo is used. Otherwise a chroot of Debian sid is made once, whose rustc has that library
# as a package (1 GB, kept in KEDGE_CROSS_DIR [/var/cache/kedge-cross]); root is needed then.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/mirrors.sh

case "${1:-}" in
    arm64) TRIPLE=aarch64-unknown-linux-gnu GNU=aarch64-linux-gnu QEMU=qemu-aarch64 ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
ACTION=${2:-build}
CROSS_DIR=${KEDGE_CROSS_DIR:-/var/cache/kedge-cross}
ROOT=$CROSS_DIR/sid
TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# Crates without system calls of their own worth testing on another processor: numbers, bytes, text.
PURE=(kedge-api kedge-base)

say() { printf '==> %s\n' "$*" >&2; }
no() { echo "$*"; exit 1; }

own_toolchain() {
    command -v "$GNU-gcc" >/dev/null &&
        [ -d "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/$TRIPLE/lib" ]
}

check() {
    own_toolchain && return
    [ "$(id -u)" = 0 ] || no "no Rust library for $TRIPLE here, and making a chroot needs root"
    [ ! -e "$ROOT.done" ] || return 0
    command -v debootstrap >/dev/null || no "no Rust library for $TRIPLE here, and no debootstrap"
    curl -fsI --max-time 20 "$(debian_mirror)/dists/sid/InRelease" >/dev/null ||
        no "Debian's packages cannot be reached"
}

make_root() {
    [ ! -e "$ROOT.done" ] || return 0
    say "making a chroot of Debian sid in $ROOT (once)"
    mkdir -p "$CROSS_DIR"
    rm -rf --one-file-system -- "$ROOT"
    debootstrap --variant=minbase sid "$ROOT" "$(debian_mirror)" >"$ROOT.log" 2>&1
    chroot "$ROOT" dpkg --add-architecture arm64
    # A mirror may be days behind: sid's lists are valid for one week only.
    chroot "$ROOT" apt-get -o Acquire::Check-Valid-Until=false update -q >>"$ROOT.log" 2>&1
    chroot "$ROOT" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        rustc cargo libstd-rust-dev:arm64 gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
        protobuf-compiler make qemu-user >>"$ROOT.log" 2>&1
    chroot "$ROOT" apt-get clean
    touch "$ROOT.done"
}

# cross CARGO-ARGUMENTS...
cross() {
    local settings=(
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$GNU-gcc"
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$QEMU"
        "CC_aarch64_unknown_linux_gnu=$GNU-gcc" "AR_aarch64_unknown_linux_gnu=$GNU-ar"
        # Kernels of arm64 boards have pages of 4, 16 or 64 KiB; built for the largest it suits all.
        JEMALLOC_SYS_WITH_LG_PAGE=16 CARGO_INCREMENTAL=0
    )
    if own_toolchain; then
        # Debian 12 has it as qemu-user-static.
        command -v "$QEMU" >/dev/null || settings+=("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$QEMU-static")
        env "${settings[@]}" CARGO_TARGET_DIR="$TARGET_DIR" cargo "$@" >&2
        return
    fi
    make_root
    mkdir -p "$ROOT/src" "$ROOT/target" "$ROOT/cargo" "$TARGET_DIR/cross" "${CARGO_HOME:-$HOME/.cargo}"
    # Its own mount namespace: nothing stays mounted, however this ends.
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --propagation private sh -ec '
        root=$1 src=$2 target=$3 cargo=$4; shift 4
        mount --rbind /dev "$root/dev"; mount -t proc proc "$root/proc"
        mount --bind "$src" "$root/src"; mount --bind "$target" "$root/target"; mount --bind "$cargo" "$root/cargo"
        cp /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CARGO_HOME=/cargo \
            CARGO_TARGET_DIR=/target ${CARGO_NET_OFFLINE:+CARGO_NET_OFFLINE=$CARGO_NET_OFFLINE} "$@"
    ' sh "$ROOT" "$PWD" "$TARGET_DIR/cross" "${CARGO_HOME:-$HOME/.cargo}" \
        "${settings[@]}" sh -c 'cd /src && exec cargo "$@"' cargo "$@" >&2
}

output_dir() { if own_toolchain; then echo "$TARGET_DIR"; else echo "$TARGET_DIR/cross"; fi; }

case "$ACTION" in
    check) check ;;
    build)
        why=$(check) || { echo "error: $why" >&2; exit 1; }
        cross build --release --locked --package kedge --target "$TRIPLE"
        echo "$(output_dir)/$TRIPLE/release/kedge"
        ;;
    test)
        why=$(check) || { echo "error: $why" >&2; exit 1; }
        packages=()
        for crate in "${PURE[@]}"; do packages+=(--package "$crate"); done
        cross test --locked --lib "${packages[@]}" --target "$TRIPLE"
        ;;
    *) echo "no such action: $ACTION" >&2 && exit 2 ;;
esac
