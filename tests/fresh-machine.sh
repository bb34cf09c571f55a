#!/usr/bin/env bash
# Kedge on fresh machines, with real systemd: ./install.sh with a ready-made binary, restarts that keep
# containers, a reboot, uninstall; then the same with the Debian package, to purge.
#
#   tests/fresh-machine.sh [--binary FILE] [--deb FILE] [debian|ubuntu]...
#
# Without --binary the release binary under target/ is taken; without --deb that part is left out.
# Prints "N passed, N failed, N skipped" last; a machine that cannot run it says why and skips all.
# The machines are namespaces of this one (see tests/machine/lib.sh): nothing of it is changed but the
# cache of downloads (KEDGE_MACHINE_CACHE). The first run downloads about 150 MB a distribution.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
. tests/machine/lib.sh

BINARY=${CARGO_TARGET_DIR:-target}/$(uname -m)-unknown-linux-gnu/release/kedge
DEB=
distributions=()
while [ $# -gt 0 ]; do
    case "$1" in
        --binary) BINARY=$2 && shift 2 ;;
        --deb) DEB=$2 && shift 2 ;;
        debian | ubuntu) distributions+=("$1") && shift ;;
        *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
[ ${#distributions[@]} -gt 0 ] || distributions=(debian ubuntu)

PASSED=0 FAILED=0 SKIPPED=0
closing() {
    echo "fresh machines: $PASSED passed, $FAILED failed, $SKIPPED skipped"
    [ "$FAILED" = 0 ]
}
if ! why=$(machine_supported); then
    echo "skipped: fresh machines cannot be made here: $why"
    SKIPPED=1
    closing
    exit
fi
[ -x "$BINARY" ] || { echo "error: there is no binary $BINARY; build it or name one with --binary" >&2; exit 2; }

CURRENT=
OUTPUT=$(mktemp)
clean_up() {
    local status=$?
    trap - EXIT INT TERM
    rm -f "$OUTPUT"
    [ -z "$CURRENT" ] || machine_remove "$CURRENT"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

inside() { machine_run "$CURRENT" "$@"; }

# The containers that run and the process of each: what a restart must not change.
containers() {
    inside ctr --address /run/kedge/containerd/containerd.sock --namespace k8s.io tasks list |
        awk 'NR > 1 && $3 == "RUNNING" { print $1, $2 }' | sort
}

# Runs "$@", waits until the node is Ready again, and compares the containers.
keeps_containers() {
    local before after
    before=$(containers)
    [ -n "$before" ] || { echo "no container runs before"; return 1; }
    "$@" || return
    inside kedge status --wait-ready --timeout 120 || return
    after=$(containers)
    [ "$before" = "$after" ] || { printf 'before:\n%s\nafter:\n%s\n' "$before" "$after"; return 1; }
}

unit_is_as_promised() {
    local properties line
    properties=$(inside systemctl show kedge.service) || return
    for line in Type=notify KillMode=process Delegate=yes Restart=always ActiveState=active \
        UnitFileState=enabled OOMPolicy=continue; do
        grep -qx "$line" <<<"$properties" || { echo "$line is not so:" && grep "^${line%%=*}" <<<"$properties"; return 1; }
    done
    inside systemd-analyze verify kedge.service
}

# systemd starts it again by itself: another process id, then ready.
comes_back_after_kill() {
    local before after tries=0
    before=$(inside systemctl show -p MainPID --value kedge.service)
    inside systemctl kill --kill-who=main --signal=KILL kedge.service || return
    while after=$(inside systemctl show -p MainPID --value kedge.service); [ "$after" = "$before" ] || [ "$after" = 0 ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { echo "systemd did not start it again"; return 1; }
        sleep 0.2
    done
}

reboots() {
    local before
    before=$(inside kedge config | sha256sum)
    machine_reboot "$CURRENT" || return
    inside kedge status --wait-ready --timeout 120 || { inside journalctl -u kedge -n 30 --no-pager; return 1; }
    [ "$before" = "$(inside kedge config | sha256sum)" ] || { echo "the cluster is another one"; return 1; }
    dns_runs
}

# The pod of the dns addon (its pause container and itself), with no image from anywhere.
dns_runs() {
    local tries=0
    until [ "$(containers | wc -l)" -ge 2 ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || { echo "the dns pod does not run:"; containers; return 1; }
        sleep 0.5
    done
}

# What must not be there after an uninstall. $1: a pattern of files that a package may own.
nothing_left() {
    local left
    left=$(inside sh -c '
        ps -eo args= | grep -E "kedge|containerd-shim" | grep -v grep
        grep -E "kedge|/run/netns/" /proc/self/mounts
        ip -o link | grep -E "kedge0|flannel|veth|cni"
        [ -z "$(ls -A /run/netns 2>/dev/null)" ] || ls /run/netns
        nft list tables | grep -i kedge
        systemctl list-unit-files | grep kedge
        find /sys/fs/cgroup -type d -name "kubepods*"
        find / -xdev \( -path /proc -o -path /sys -o -path /root -o -path /var/log/journal -o -path /var/lib/dpkg \
            -o -path /var/lib/apt \) -prune -o -name "*kedge*" -print
        find /run -name "*kedge*" ! -name kedge-machine
        find /etc/cni /var/lib/cni /var/log/pods /var/log/containers 2>/dev/null | grep -v "^/etc/cni\(/net.d\)\?$"
        true') || return
    [ -z "${1:-}" ] || left=$(grep -vE "$1" <<<"$left")
    [ -z "$left" ] || { printf 'left:\n%s\n' "$left"; return 1; }
}

start_machine() {
    CURRENT=$1-$2
    machine_make "$1" "$CURRENT" && machine_boot "$CURRENT"
}

install_script() {
    mkdir -p "$(machine_root "$CURRENT")/root/kedge" &&
        cp install.sh "$(machine_root "$CURRENT")/root/kedge/" &&
        cp "$BINARY" "$(machine_root "$CURRENT")/root/kedge/kedge" || return
    check "install.sh with a ready-made binary, to Ready" inside sh -c 'cd kedge && ./install.sh' || return
    check "kedge status" inside kedge status || return
    check "the unit" unit_is_as_promised
    check "the dns pod runs, no registry asked" dns_runs || return
    check "a restart of the unit keeps the containers" keeps_containers inside systemctl restart kedge.service
    check "kill -9 of the service keeps the containers" keeps_containers comes_back_after_kill
    check "kedge stop and start keep the containers" keeps_containers inside sh -c 'kedge stop && kedge start'
    check "install.sh again keeps the containers" keeps_containers inside sh -c 'cd kedge && ./install.sh'
    check "a reboot brings the cluster back" reboots
    check "kedge uninstall" inside kedge uninstall
    check "nothing is left" nothing_left
    check "kedge install after an uninstall" inside /root/kedge/kedge install --without dns
    check "kedge uninstall again" inside kedge uninstall
    check "nothing is left again" nothing_left
}

debian_package() {
    cp "$DEB" "$(machine_root "$CURRENT")/root/kedge.deb" || return
    check "the package installs with what it depends on" inside apt-get install -y -q --no-install-recommends ./kedge.deb || return
    check "it starts nothing by itself" inside sh -c '! systemctl is-active -q kedge && ! systemctl is-enabled -q kedge'
    check "kedge install, to Ready" inside kedge install || return
    check "the package's own unit and binary are used" inside sh -c '
        set -x; test ! -e /etc/systemd/system/kedge.service; test ! -e /usr/local/bin/kedge
        test "$(readlink /proc/$(systemctl show -p MainPID --value kedge)/exe)" = /usr/bin/kedge' || return
    check "the unit" unit_is_as_promised
    check "the dns pod runs, no registry asked" dns_runs || return
    check "an upgrade of the package keeps the containers" keeps_containers inside apt-get install -y -q --no-install-recommends --reinstall ./kedge.deb
    check "and saves the cluster first" inside sh -c 'kedge snapshot list | grep before-upgrade-from'
    check "a reboot brings the cluster back" reboots
    check "kedge uninstall leaves the package" inside sh -c 'kedge uninstall && kedge version'
    check "and nothing else" nothing_left '^/usr/|^/etc/kedge(/environment)?$|^kedge\.service +disabled|/var/cache/apt|/etc/systemd/system$'
    check "kedge install again" inside kedge install || return
    check "removing the package ends the node and keeps the data" inside sh -c '
        apt-get remove -y -q kedge && test -e /var/lib/kedge && test ! -e /usr/bin/kedge && ! pgrep -f "[c]ontainerd-shim"'
    check "the package again finds the cluster" inside sh -c 'apt-get install -y -q --no-install-recommends ./kedge.deb && kedge install' || return
    check "purge" inside apt-get purge -y -q kedge
    check "nothing is left" nothing_left
}

for distribution in "${distributions[@]}"; do
    # Making the root needs a mirror; a machine without one cannot test this.
    if ! machine_image "$distribution" >/dev/null; then
        echo "skipped: $distribution: its packages cannot be fetched"
        SKIPPED=$((SKIPPED + 1))
        continue
    fi
    if check "a fresh machine boots" start_machine "$distribution" script; then
        CURRENT=$distribution-script
        install_script
    fi
    machine_remove "$distribution-script"
    CURRENT=
    [ -n "$DEB" ] || continue
    if check "a fresh machine boots" start_machine "$distribution" deb; then
        CURRENT=$distribution-deb
        debian_package
    fi
    machine_remove "$distribution-deb"
    CURRENT=
done
closing
