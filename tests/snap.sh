#!/usr/bin/env bash
# The snap without snapd: checks snapcraft.yaml, runs its parts into a tree, packs it as a squashfs, and
# runs `install` to Ready from that squashfs on a fresh Ubuntu 24.04 (core24's content). A refresh to another
# revision, one that is refused, and the removal of the first restart no container.
#
#   tests/snap.sh [--binary FILE]
#
# SNAPCRAFT_SCHEMA names snapcraft's schema/snapcraft.json; without it the schema is not checked.
# KUBECTL names a kubectl [the one in PATH].
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
. tests/machine/lib.sh

BINARY=${CARGO_TARGET_DIR:-target}/$(uname -m)-unknown-linux-gnu/release/kedge
[ "${1:-}" != --binary ] || BINARY=$2
KUBECTL=${KUBECTL:-$(command -v kubectl || true)}
PASSED=0 FAILED=0 SKIPPED=0
closing() {
    echo "snap: $PASSED passed, $FAILED failed, $SKIPPED skipped"
    [ "$FAILED" = 0 ]
}
skip() {
    echo "skipped: $1"
    SKIPPED=$((SKIPPED + 1))
}

NAME=ubuntu-snap
WORK=$(mktemp -d)
OUTPUT=$WORK/output
clean_up() {
    local status=$?
    trap - EXIT INT TERM
    machine_remove "$NAME"
    rm -rf -- "$WORK"
    exit "$status"
}

if ! python3 -c 'import yaml' 2>/dev/null; then
    skip "python3 has no yaml (apt-get install python3-yaml)"
    closing
    exit
fi
if [ -n "${SNAPCRAFT_SCHEMA:-}" ] && python3 -c 'import jsonschema' 2>/dev/null; then
    check "snapcraft.yaml and the strict variant fit snapcraft's schema" tests/snap_schema.py "$SNAPCRAFT_SCHEMA"
else
    check "snapcraft.yaml and the strict variant fit together" tests/snap_schema.py
    skip "snapcraft's schema (SNAPCRAFT_SCHEMA does not name it, or python3 has no jsonschema)"
fi
why=
machine_supported >"$WORK/why" || why=$(cat "$WORK/why")
[ -x "$BINARY" ] || why="there is no binary $BINARY"
[ -n "$KUBECTL" ] || why="there is no kubectl"
command -v mksquashfs >/dev/null || why="there is no mksquashfs (apt-get install squashfs-tools)"
grep -qw squashfs /proc/filesystems || why="the kernel has no squashfs"
[ -n "$why" ] || image=$(machine_image ubuntu) || why="Ubuntu's packages cannot be fetched"
if [ -n "$why" ]; then
    skip "running the snap: $why"
    closing
    exit
fi
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Each part's stage-packages with what they need beyond the base, fetched once.
stage_packages() {
    local part packages folder
    while read -r part packages; do
        folder=$image/var/cache/snap-parts/$part
        # shellcheck disable=SC2086 # a list of words
        if [ "$(cat "$folder/.packages" 2>/dev/null)" != "$packages" ]; then
            mkdir -p "$folder/partial"
            chroot "$image" apt-get install -y -q --no-install-recommends --reinstall --download-only \
                -o Dir::Cache::Archives="/var/cache/snap-parts/$part" $packages || return
            echo "$packages" >"$folder/.packages"
        fi
    done < <(python3 -c '
import yaml
for name, part in yaml.safe_load(open("snap/snapcraft.yaml"))["parts"].items():
    if part.get("stage-packages"):
        print(name, *part["stage-packages"])')
}

make_tree() {
    KEDGE_BINARY=$BINARY KUBECTL=$KUBECTL \
        tests/snap_parts.py --packages "$image/var/cache/snap-parts" --tree "$WORK/tree"
}

# Three revisions: the second differs as a new version would; the third looks for another word at the head of
# the log, as a version with another format would.
pack() {
    pack_revision x1 && sed -i 's/^version: .*/version: 99.0.0/' "$WORK/tree/meta/snap.yaml" && pack_revision x2 &&
        LC_ALL=C sed -i 's/KEDGELOG/KEDGELOX/g' "$WORK/tree/bin/kedge" && pack_revision x3
}
pack_revision() {
    mksquashfs "$WORK/tree" "$WORK/kedge_$1.snap" -noappend -quiet -no-progress -comp gzip -Xcompression-level 1
}

REVISION=x1
# As snapd runs a command of the snap: its environment, through its command chain.
in_snap() {
    MACHINE_RUN_FLAGS="--property=KillMode=process" machine_run "$NAME" env SNAP="/snap/kedge/$REVISION" \
        SNAP_NAME=kedge SNAP_INSTANCE_NAME=kedge SNAP_REVISION="$REVISION" SNAP_ARCH="$(dpkg --print-architecture)" \
        SNAP_DATA="/var/snap/kedge/$REVISION" SNAP_COMMON=/var/snap/kedge/common \
        KEDGE_RUN_DIR=/run/snap.kedge "/snap/kedge/$REVISION/bin/env.sh" "$@"
}
kedge() { in_snap "/snap/kedge/$REVISION/bin/kedge" "$@"; }
hook() { in_snap "/snap/kedge/$REVISION/meta/hooks/$1"; }

start_machine() {
    local root number
    machine_make ubuntu "$NAME" || return
    root=$(machine_root "$NAME")
    mkdir -p "$root/var/lib/snapd/snaps" "$root/var/snap/kedge/common"
    cp "$WORK"/kedge_x?.snap "$root/var/lib/snapd/snaps/"
    machine_boot "$NAME" || return
    machine_nsenter "$NAME" mknod /dev/loop-control c 10 237
    for number in 0 1 2 3 4 5 6 7; do machine_nsenter "$NAME" mknod "/dev/loop$number" b 7 "$number"; done
    mount_revision x1
}
mount_revision() {
    machine_nsenter "$NAME" sh -ec "
        mkdir -p /snap/kedge/$1 /var/snap/kedge/$1
        mount -t squashfs -o loop,ro,nodev /var/lib/snapd/snaps/kedge_$1.snap /snap/kedge/$1
        ln -sfn $1 /snap/kedge/current"
}

containers() { in_snap "/snap/kedge/$REVISION/bin/ctr" tasks list | awk 'NR > 1 && $3 == "RUNNING" { print $1, $2 }' | sort; }
uses_its_own_programs() {
    machine_nsenter "$NAME" sh -c '
        test -n "$(pgrep containerd)"
        for pid in $(pgrep containerd); do
            case "$(readlink /proc/$pid/exe)" in /snap/kedge/*) ;; *) ps -p $pid -o args=; exit 1 ;; esac
        done' || return
    # The machine itself has none of them.
    ! machine_nsenter "$NAME" sh -c 'command -v containerd || command -v runc' || return
    # No process may depend on this revision's path.
    ! machine_nsenter "$NAME" sh -c '
        for pid in $(pgrep containerd); do tr "\0" "\n" </proc/$pid/environ | grep "^PATH=.*kedge/x"; done | grep .'
}
# The new revision's hook fails and says why; then snapd links the old one again and starts its daemon.
refused_refresh() {
    local before said
    before=$(containers)
    hook pre-refresh && kedge stop && mount_revision x3 || return
    REVISION=x3
    ! said=$(hook post-refresh 2>&1) || { echo "it did not fail: $said"; return 1; }
    echo "$said"
    grep "snapd goes back to" <<<"$said" && grep "kedge snapshot restore before-upgrade-from-" <<<"$said" || return
    machine_nsenter "$NAME" sh -c 'umount /snap/kedge/x3 && rmdir /snap/kedge/x3 && ln -sfn x1 /snap/kedge/current' || return
    REVISION=x1
    kedge start && kedge status --wait-ready --timeout 120 && [ "$before" = "$(containers)" ]
}
refresh() {
    local before after
    before=$(containers)
    [ "$(wc -l <<<"$before")" -ge 2 ] || { echo "too few containers: $before"; return 1; }
    hook pre-refresh || return
    kedge stop || return
    mount_revision x2 || return
    REVISION=x2
    # It starts the new revision and waits for it.
    hook post-refresh && kedge status || return
    after=$(containers)
    [ "$before" = "$after" ] || { printf 'before:\n%s\nafter:\n%s\n' "$before" "$after"; return 1; }
    # The copy that a revert would need.
    kedge snapshot list | grep before-upgrade-from-
}
# snapd removes old revisions: what still runs from them must go on, and be ended by the new one's runc.
remove_old() {
    local before tries=0
    before=$(containers)
    machine_nsenter "$NAME" umount -l /snap/kedge/x1 && machine_nsenter "$NAME" rmdir /snap/kedge/x1 || return
    [ "$before" = "$(containers)" ] || return
    kedge kubectl delete pod -n kube-system --all --wait=true --timeout=120s || return
    until [ "$(containers | wc -l)" = "$(wc -l <<<"$before")" ] && [ "$(containers)" != "$before" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || { containers; return 1; }
        sleep 0.5
    done
}
nothing_left() {
    local left
    left=$(machine_nsenter "$NAME" sh -c '
        ps -eo args= | grep -E "kedge|containerd" | grep -v grep
        grep -E "/var/snap|/run/snap|/run/netns/" /proc/self/mounts
        ip -o link | grep -E "kedge0|flannel|veth"
        find /run/snap.kedge /var/lib/cni /var/log/pods 2>/dev/null; true')
    [ -z "$left" ] || { printf 'left:\n%s\n' "$left"; return 1; }
}

run_all() {
    check "the stage-packages" stage_packages || return
    check "the parts, run into a tree" make_tree || return
    check "three revisions packed as squashfs" pack || return
    check "a fresh Ubuntu with the first one mounted" start_machine || return
    check "the install hook" hook install
    check "install to Ready from the squashfs" kedge install || return
    check "the snap's own containerd and runc, by paths that last" uses_its_own_programs
    check "the kubectl inside" kedge kubectl get nodes
    check "a revision that cannot read the data is refused, and the old one goes on" refused_refresh || return
    check "a refresh restarts no container" refresh || return
    check "the old revision's removal restarts none; pods end afterwards" remove_old
    check "the remove hook" hook remove
    check "nothing is left but the data" nothing_left
}
run_all
closing
