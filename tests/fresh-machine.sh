#!/usr/bin/env bash
# Kedge on fresh machines, with real systemd: ./install.sh with a ready-made binary, restarts that keep
# containers, a reboot, uninstall; then the same with the Debian package, to purge.
#
#   tests/fresh-machine.sh [--binary FILE] [--deb FILE] [--only script|ufw|firewalld|deb] [debian|ubuntu]...
#
# Behind ufw and firewalld: what they stop, that kedge inspect says so, and that its remedy helps.
# Without --binary the release binary under target/ is taken; without --deb that part is left out.
# Prints "N passed, N failed, N skipped" last; a machine that cannot run it says why and skips all.
# The machines are namespaces of this one (see tests/machine/lib.sh): nothing of it is changed but the
# cache of downloads (KEDGE_MACHINE_CACHE). The first run downloads about 150 MB a distribution.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
. tests/machine/lib.sh

BINARY=${CARGO_TARGET_DIR:-target}/$(uname -m)-unknown-linux-gnu/release/kedge
DEB= ONLY=
distributions=()
while [ $# -gt 0 ]; do
    case "$1" in
        --binary) BINARY=$2 && shift 2 ;;
        --deb) DEB=$2 && shift 2 ;;
        --only) ONLY=$2 && shift 2 ;;
        debian | ubuntu) distributions+=("$1") && shift ;;
        *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
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
    rm -rf "$OUTPUT" "$OUTPUT".*
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

bring_kubectl() {
    install -m 0755 "${KUBECTL:-$(command -v kubectl)}" "$(machine_root "$CURRENT")/usr/local/bin/kubectl"
}
# Another version in the place of the installed one: this one with other bytes.
other_version() { inside sh -c 'cd kedge && cp kedge other && echo another >>other'; }
installed() { inside sh -c "cmp /usr/local/bin/kedge /root/kedge/$1"; }

# It looks for another word at the head of the log, as a version with another format would.
refused_upgrade() {
    inside sh -c 'cd kedge && LC_ALL=C sed "s/KEDGELOG/KEDGELOX/g" kedge >broken && chmod 755 broken &&
        ! ./broken install >out 2>&1; cat out; grep "did not become Ready" out && grep "runs again" out' &&
        installed kedge && inside kedge status --wait-ready --timeout 60
}

unsaved_upgrade() {
    local status=0
    other_version && inside sh -c 'mv /var/lib/kedge/snapshots kept && touch /var/lib/kedge/snapshots' || return
    inside sh -c 'cd kedge && ! ./other install >out 2>&1; cat out; grep "cannot be saved" out && grep -e "say --force" out' &&
        installed kedge && inside sh -c 'cd kedge && ./other install --force' && installed other &&
        inside kedge rollback && installed kedge || status=1
    inside sh -c 'rm /var/lib/kedge/snapshots && mv kept /var/lib/kedge/snapshots' && return "$status"
}

upgrade_and_rollback() {
    other_version && inside sh -c 'cd kedge && ./other install && kedge snapshot list | grep before-upgrade-from' &&
        installed other && inside kedge kubectl create configmap since-the-upgrade &&
        inside kedge rollback && installed kedge && inside kedge kubectl get configmap since-the-upgrade
}

rollback_with_data() {
    inside sh -c 'cd kedge && ./other install && kedge kubectl create configmap later' &&
        inside kedge rollback --with-data --yes && installed kedge &&
        inside sh -c 'kedge kubectl get configmap since-the-upgrade && ! kedge kubectl get configmap later'
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
    check "a version that cannot read the data is taken back by itself" keeps_containers refused_upgrade
    check "an upgrade whose cluster cannot be saved: refused, unless forced" keeps_containers unsaved_upgrade
    check "kubectl is brought" bring_kubectl
    check "an upgrade, and back without the data" keeps_containers upgrade_and_rollback
    check "and back with the data" rollback_with_data
    check "a reboot brings the cluster back" reboots
    check "kedge uninstall" inside kedge uninstall
    check "nothing is left" nothing_left
    check "kedge install after an uninstall" inside /root/kedge/kedge install --without dns
    check "kedge uninstall again" inside kedge uninstall
    check "nothing is left again" nothing_left
}

package_is() { [ "$(inside dpkg-query --show --showformat '${db:Status-Status}' kedge)" = "$1" ]; }
process() { inside systemctl show -p MainPID --value kedge.service; }

# The package with a program that looks for another word at the head of the log (see refused_upgrade).
other_package() {
    local tree=$OUTPUT.tree
    dpkg-deb --raw-extract "$DEB" "$tree" && sed -i 's/^Version: .*/Version: 99.0/' "$tree/DEBIAN/control" &&
        LC_ALL=C sed -i 's/KEDGELOG/KEDGELOX/g' "$tree/usr/bin/kedge" &&
        dpkg-deb --root-owner-group -Zgzip -z1 --build "$tree" "$(machine_root "$CURRENT")/root/other.deb" &&
        rm -rf -- "$tree"
}
refused_package() {
    inside sh -c '! apt-get install -y -q ./other.deb >out 2>&1; cat out; grep "runs again, and nothing was lost" out &&
        grep "dpkg --configure kedge" out' && package_is half-configured
}
# As apt does whenever it runs.
half_configured_rests() {
    local before
    before=$(process)
    inside sh -c '! dpkg --configure kedge >out 2>&1; cat out; grep "was taken back" out' && [ "$before" = "$(process)" ]
}
# Whoever mended what was wrong (here: the program) tries it again.
once_more() {
    inside sh -c 'touch /etc/kedge/upgrade-anyway && ! dpkg --configure kedge >out 2>&1; cat out; grep "runs again" out' &&
        package_is half-configured &&
        inside sh -c 'cp /usr/bin/kedge /usr/lib/kedge/upgrade/failed && touch /etc/kedge/upgrade-anyway && dpkg --configure kedge &&
            test ! -e /etc/kedge/upgrade-anyway && test ! -e /usr/lib/kedge' && package_is installed
}
old_package_again() {
    inside apt-get install -y -q --allow-downgrades ./kedge.deb && package_is installed && inside test ! -e /usr/lib/kedge
}
unsaved_is_refused() {
    local before status=0
    before=$(process)
    inside sh -c 'mv /var/lib/kedge/snapshots kept && touch /var/lib/kedge/snapshots' || return
    inside sh -c '! apt-get install -y -q --reinstall ./kedge.deb >out 2>&1; cat out
        grep "cannot be saved" out && grep "touch /etc/kedge/upgrade-anyway" out' &&
        package_is installed && [ "$before" = "$(process)" ] &&
        inside sh -c 'touch /etc/kedge/upgrade-anyway && apt-get install -y -q --reinstall ./kedge.deb &&
            test ! -e /etc/kedge/upgrade-anyway' && [ "$before" != "$(process)" ] || status=1
    inside sh -c 'rm /var/lib/kedge/snapshots && mv kept /var/lib/kedge/snapshots' && return "$status"
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
    check "a cluster that cannot be saved: refused, unless told otherwise" keeps_containers unsaved_is_refused
    check "a package whose program cannot read the data" other_package || return
    check "it is taken back by itself" keeps_containers refused_package
    check "apt does not try it again by itself" half_configured_rests
    check "it is tried once more when somebody says so" keeps_containers once_more
    check "the old package again" keeps_containers old_package_again
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

# --- behind a firewall --------------------------------------------------------------------------

# The machine's other side, as another node or a user sees it: does this port answer there?
reaches() {
    timeout 5 ip netns exec "kedge-r-$CURRENT" bash -c "exec 3<>/dev/tcp/198.51.100.10/$1" 2>/dev/null
}

# A pod's view: a program in the network namespace of the hello pod's process.
from_pod() {
    local pid
    pid=$(inside ctr --address /run/kedge/containerd/containerd.sock --namespace k8s.io tasks list |
        awk 'NR > 1 { print $2 }' | while read -r pid; do
        inside sh -c "tr '\\0' ' ' </proc/$pid/cmdline" | grep -q 'hello' && echo "$pid" && break
    done)
    [ -n "$pid" ] || { echo "no hello pod runs"; return 1; }
    inside nsenter --target "$pid" --net -- "$@"
}

ufw_is_on() {
    inside sh -c 'apt-get install -y -q --no-install-recommends ufw python3-minimal &&
        ufw default deny incoming && ufw default deny routed && ufw --force enable && ufw status verbose'
}

firewalld_is_on() {
    inside sh -c 'apt-get install -y -q --no-install-recommends firewalld netbase python3-minimal &&
        systemctl restart firewalld && firewall-cmd --state && firewall-cmd --list-all ||
        { journalctl -u firewalld --no-pager -n 30; false; }'
}

# inspect must name it and say what to type; what it says is then typed, word for word.
inspect_names() {
    inside kedge inspect -o json >"$OUTPUT.json"
    python3 - "$OUTPUT.json" "$1 is active" >"$OUTPUT.remedy" <<'PYTHON'
import json, sys
findings = [f for f in json.load(open(sys.argv[1])) if sys.argv[2] in f["message"]]
assert findings and findings[0]["state"] != "ok", findings
print(findings[0]["remedy"].split(" (it may")[0])
PYTHON
}

remedy_is_typed() {
    cat "$OUTPUT.remedy"
    inside sh -ec "$(tr ';' '\n' <"$OUTPUT.remedy")"
}

ports_are() {
    local port wanted=$1
    shift
    for port in "$@"; do
        if reaches "$port"; then [ "$wanted" = open ]; else [ "$wanted" = closed ]; fi ||
            { echo "port $port is not $wanted"; return 1; }
    done
}

hello_runs() {
    inside sh -ec '
        export KUBECONFIG=/var/lib/kedge/kubeconfig
        /root/kubectl create deployment hello --image=kedge.dev/hello:1.0
        /root/kubectl rollout status deployment hello --timeout=120s
        /root/kubectl expose deployment hello --type=NodePort --port=8080'
}

node_port_answers() {
    local port
    port=$(inside /root/kubectl --kubeconfig /var/lib/kedge/kubeconfig get service hello -o 'jsonpath={.spec.ports[0].nodePort}')
    ports_are open "$port"
}

# The name of the API server's Service, asked of the cluster's DNS.
pod_resolves() {
    from_pod python3 -c '
import socket, struct
name = b"".join(bytes([len(part)]) + part for part in b"kubernetes.default.svc.cluster.local".split(b".")) + b"\0"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
    asked.settimeout(5)
    asked.sendto(struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1), ("10.96.0.10", 53))
    answer = asked.recv(512)
assert answer[-4:] == bytes([10, 96, 0, 1]), answer'
}

# Out of the machine, to its router.
pod_gets_out() {
    ip netns exec "kedge-r-$CURRENT" python3 -c '
import socket
listener = socket.create_server(("198.51.100.1", 8099))
listener.settimeout(60)
listener.accept()[0].sendall(b"out")' &
    local server=$!
    sleep 1
    from_pod python3 -c '
import socket
assert socket.create_connection(("198.51.100.1", 8099), 10).recv(3) == b"out"'
    local result=$?
    kill "$server" 2>/dev/null
    wait "$server" 2>/dev/null
    return $result
}

# $1: its name; $2: what makes it read its rules again
behind() {
    local kubectl
    kubectl=${KUBECTL:-$(command -v kubectl)}
    mkdir -p "$(machine_root "$CURRENT")/root/kedge" &&
        cp install.sh "$(machine_root "$CURRENT")/root/kedge/" &&
        cp "$BINARY" "$(machine_root "$CURRENT")/root/kedge/kedge" &&
        cp "$kubectl" "$(machine_root "$CURRENT")/root/kubectl" || return
    check "$1, denying what comes in and what is forwarded" "$1_is_on" || return
    check "install.sh behind it; dns comes later" inside sh -c 'cd kedge && ./install.sh --without dns' || return
    check "other nodes reach no port" ports_are closed 6443 25000 10250
    check "kedge inspect names $1 and the remedy" inspect_names "$1" || return
    check "the remedy, as it is written" remedy_is_typed || return
    check "other nodes reach the ports for joining" ports_are open 6443 25000 10250
    check "kedge enable dns" inside kedge enable dns || return
    check "pods, a Service with a node port" hello_runs || return
    check "the node port answers from outside" node_port_answers
    check "a pod resolves names" pod_resolves
    check "a pod gets out" pod_gets_out
    check "and still after $2" inside sh -c "$2 && sleep 3"
    check "the node port answers from outside" node_port_answers
    check "a pod gets out" pod_gets_out
    check "kedge uninstall" inside kedge uninstall
    # What its owner was told to type stays: that is in other chains.
    check "its rules are gone from $1's chains" inside sh -c '
        ! { iptables -S FORWARD; nft list table inet firewalld; } 2>/dev/null | grep kedge'
}

for distribution in "${distributions[@]}"; do
    # Making the root needs a mirror; a machine without one cannot test this.
    if ! machine_image "$distribution" >/dev/null; then
        echo "skipped: $distribution: its packages cannot be fetched"
        SKIPPED=$((SKIPPED + 1))
        continue
    fi
    if [ -n "$ONLY" ] && [ "$ONLY" != script ]; then
        :
    elif check "a fresh machine boots" start_machine "$distribution" script; then
        CURRENT=$distribution-script
        install_script
    fi
    machine_remove "$distribution-script"
    CURRENT=
    for firewall in ufw:"ufw reload" firewalld:"firewall-cmd --reload"; do
        name=${firewall%%:*}
        if [ -n "$ONLY" ] && [ "$ONLY" != "$name" ]; then
            continue
        elif ! command -v "${KUBECTL:-kubectl}" >/dev/null; then
            echo "skipped: $distribution behind $name: there is no kubectl (name one with KUBECTL)"
            SKIPPED=$((SKIPPED + 1))
        elif check "a fresh machine boots" start_machine "$distribution" "$name"; then
            CURRENT=$distribution-$name
            behind "$name" "${firewall#*:}"
        fi
        machine_remove "$distribution-$name"
        CURRENT=
    done
    if [ -z "$DEB" ] || { [ -n "$ONLY" ] && [ "$ONLY" != deb ]; }; then
        continue
    fi
    if check "a fresh machine boots" start_machine "$distribution" deb; then
        CURRENT=$distribution-deb
        debian_package
    fi
    machine_remove "$distribution-deb"
    CURRENT=
done
closing
