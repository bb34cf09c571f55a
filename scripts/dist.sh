#!/usr/bin/env bash
# Makes what is published: dist/kedge-VERSION-linux-ARCH.tar.gz, dist/kedge_VERSION_ARCH.deb, an SBOM
# (CycloneDX) and SHA256SUMS over all that is in dist/. The same input gives the same files.
#
#   scripts/dist.sh [--arch amd64|arm64] [--binary FILE] [--out DIR] [--check]
#
# --check makes everything twice, in other folders, time zones, languages and modes and at other times, and
# compares the bytes; nothing is left in --out then.
# Without --binary the release binary is built: with cargo here, or, for the other architecture, as
# scripts/cross.sh says. Completions and man pages come from a kedge that runs here: the binary itself,
# or KEDGE_HELPER, or a release binary of this machine that was built before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'remedy: %s\n' "$2" >&2
    exit 1
}

case "$(uname -m)" in
    x86_64) HOST=amd64 ;;
    aarch64) HOST=arm64 ;;
    *) fail "no build of Kedge for $(uname -m)" ;;
esac
ARCH=$HOST BINARY='' OUT=dist CHECK=
while [ $# -gt 0 ]; do
    case "$1" in
        --arch) ARCH=$2 && shift 2 ;;
        --binary) BINARY=$2 && shift 2 ;;
        --out) OUT=$2 && shift 2 ;;
        --check) CHECK=1 && shift ;;
        *) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
case "$ARCH" in
    amd64) MACHINE=x86_64 ELF=62 ;;
    arm64) MACHINE=aarch64 ELF=183 ;;
    *) fail "no such architecture: $ARCH" "amd64 or arm64" ;;
esac
TARGET_DIR=${CARGO_TARGET_DIR:-target}
for tool in dpkg-deb python3 sha256sum gzip tar; do
    command -v "$tool" >/dev/null || fail "$tool is missing" "apt-get install -y dpkg python3 coreutils gzip tar"
done

if [ -z "$BINARY" ]; then
    if [ "$ARCH" = "$HOST" ]; then
        cargo build --release --locked --package kedge --target "$MACHINE-unknown-linux-gnu"
        BINARY=$TARGET_DIR/$MACHINE-unknown-linux-gnu/release/kedge
    else
        BINARY=$(scripts/cross.sh "$ARCH")
    fi
fi
[ "$(od -An -tu1 -j18 -N1 "$BINARY" | tr -d ' \n')" = "$ELF" ] || fail "$BINARY is not a binary for $ARCH"
# A program that asks for a loader depends on the machine's C library.
! LC_ALL=C grep -aq '/ld-linux-\(x86-64\|aarch64\)' <(head -c 4096 "$BINARY") || fail "$BINARY is not static"

HELPER=$BINARY
[ "$ARCH" = "$HOST" ] || HELPER=${KEDGE_HELPER:-$TARGET_DIR/$(uname -m)-unknown-linux-gnu/release/kedge}
"$HELPER" version >/dev/null 2>&1 ||
    fail "$HELPER does not run here, and completions come from it" "name a kedge for this machine with KEDGE_HELPER"

VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
# Times inside the archives: the commit's.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
# xz cuts its blocks by the number of threads, and machines have different numbers.
export DPKG_DEB_THREADS_MAX=1
WORK=$(mktemp -d)
trap 'rm -rf -- "$WORK"' EXIT

if [ -n "$CHECK" ]; then
    mkdir -p "$WORK/here/tmp" "$WORK/elsewhere/with a space/tmp"
    cp "$BINARY" "$WORK/elsewhere/kedge-copy"
    touch -d '2001-02-03 04:05:06' "$WORK/elsewhere/kedge-copy"
    (umask 022 && TZ=UTC LC_ALL=C TMPDIR=$WORK/here/tmp \
        scripts/dist.sh --arch "$ARCH" --binary "$BINARY" --out "$WORK/here/dist" >/dev/null)
    sleep 2
    (umask 077 && TZ=Asia/Tokyo LC_ALL=C.UTF-8 TMPDIR="$WORK/elsewhere/with a space/tmp" \
        scripts/dist.sh --arch "$ARCH" --binary "$WORK/elsewhere/kedge-copy" \
        --out "$WORK/elsewhere/with a space/dist" >/dev/null)
    diff -r "$WORK/here/dist" "$WORK/elsewhere/with a space/dist" ||
        fail "the same input gave other bytes" "look with diffoscope at what differs"
    (cd "$WORK/here/dist" && sha256sum -- *)
    echo "made twice, the same bytes: $(find "$WORK/here/dist" -type f | wc -l) files"
    exit
fi
mkdir -p "$OUT"
umask 022

# --- what both archives hold --------------------------------------------------------------------

SHARE=$WORK/share
mkdir -p "$SHARE/completions" "$SHARE/man"
"$HELPER" completion bash >"$SHARE/completions/kedge.bash"
"$HELPER" completion zsh >"$SHARE/completions/_kedge"
"$HELPER" completion fish >"$SHARE/completions/kedge.fish"
# Man pages, where this version can write them.
if ! "$HELPER" man "$SHARE/man" >/dev/null 2>&1 || [ -z "$(ls "$SHARE/man")" ]; then
    rmdir "$SHARE/man" 2>/dev/null || rm -rf "$SHARE/man"
    echo "note: this kedge writes no man pages; they are left out" >&2
fi
SBOM=kedge-$VERSION-linux-$ARCH.cdx.json
scripts/sbom.py --target "$MACHINE-unknown-linux-gnu" --binary "$BINARY" >"$OUT/$SBOM"

# --- the tarball --------------------------------------------------------------------------------

NAME=kedge-$VERSION-linux-$ARCH
mkdir "$WORK/$NAME"
install -m 0755 "$BINARY" "$WORK/$NAME/kedge"
install -m 0755 install.sh "$WORK/$NAME/install.sh"
install -m 0644 LICENSE README.md "$WORK/$NAME/"
cp -r "$SHARE/." "$WORK/$NAME/"
tar --create --directory "$WORK" --sort=name --owner=0 --group=0 --numeric-owner --mode=go-w \
    --mtime="@$SOURCE_DATE_EPOCH" "$NAME" | gzip -9n >"$OUT/$NAME.tar.gz"

# --- the Debian package -------------------------------------------------------------------------

ROOT=$WORK/deb
mkdir -p "$ROOT/DEBIAN"
install -D -m 0755 "$BINARY" "$ROOT/usr/bin/kedge"
install -D -m 0644 packaging/kedge.service "$ROOT/usr/lib/systemd/system/kedge.service"
install -D -m 0644 packaging/environment "$ROOT/etc/kedge/environment"
install -D -m 0644 "$SHARE/completions/kedge.bash" "$ROOT/usr/share/bash-completion/completions/kedge"
install -D -m 0644 "$SHARE/completions/_kedge" "$ROOT/usr/share/zsh/vendor-completions/_kedge"
install -D -m 0644 "$SHARE/completions/kedge.fish" "$ROOT/usr/share/fish/vendor_completions.d/kedge.fish"
if [ -d "$SHARE/man" ]; then
    [ -e "$SHARE/man/kedge.1" ] || fail "the man pages have no kedge.1"
    for page in "$SHARE"/man/*.1; do
        install -D -m 0644 "$page" "$ROOT/usr/share/man/man1/$(basename "$page")"
    done
    gzip -9n "$ROOT"/usr/share/man/man1/*.1
fi
install -D -m 0644 packaging/debian/copyright "$ROOT/usr/share/doc/kedge/copyright"
install -D -m 0644 README.md "$ROOT/usr/share/doc/kedge/README.md"
install -D -m 0644 packaging/debian/lintian-overrides "$ROOT/usr/share/lintian/overrides/kedge"
printf 'kedge (%s) stable; urgency=medium\n\n  * See /usr/share/doc/kedge/README.md.\n\n -- Kedge developers <kedge@kedge.dev>  %s\n' \
    "$VERSION" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$WORK/changelog.gz"
install -m 0644 "$WORK/changelog.gz" "$ROOT/usr/share/doc/kedge/changelog.gz"
for script in preinst postinst prerm postrm; do
    # dpkg runs them when no other file of the package is there: what they share stands in each.
    sed -e '/^#UPGRADE#$/{r packaging/upgrade.sh' -e 'd}' "packaging/debian/$script" >"$ROOT/DEBIAN/$script"
    chmod 0755 "$ROOT/DEBIAN/$script"
done
echo /etc/kedge/environment >"$ROOT/DEBIAN/conffiles"
sed -e "s/@VERSION@/$VERSION/; s/@ARCH@/$ARCH/" \
    -e "s/@SIZE@/$(du -sk --apparent-size --exclude=DEBIAN "$ROOT" | cut -f1)/" packaging/debian/control >"$ROOT/DEBIAN/control"
(cd "$ROOT" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
chmod 0644 "$ROOT"/DEBIAN/{control,conffiles,md5sums}
find "$ROOT" -exec touch --no-dereference -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$ROOT" "$OUT/kedge_${VERSION}_$ARCH.deb" >/dev/null

(cd "$OUT" && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%P\n' | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)
(cd "$OUT" && ls -l "$NAME.tar.gz" "kedge_${VERSION}_$ARCH.deb" "$SBOM" SHA256SUMS)
