#!/usr/bin/env bash
# The scripts that dpkg and snapd run, with a real kedge that asks a made-up node, and a made-up snapctl: when an
# upgrade is refused, what it goes back with, and what `snap set` makes of settings.
#
#   tests/hooks.sh [--binary FILE]
#
# Needs no root and starts nothing; tests/fresh-machine.sh and tests/snap.sh run the scripts on real nodes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
. tests/machine/lib.sh

BINARY=${CARGO_TARGET_DIR:-target}/$(uname -m)-unknown-linux-gnu/release/kedge
[ "${1:-}" != --binary ] || BINARY=$2
PASSED=0 FAILED=0
WORK=$(mktemp -d)
OUTPUT=$WORK/output
NODE=
trap '[ -z "$NODE" ] || kill "$NODE"; rm -rf -- "$WORK"' EXIT
if [ ! -x "$BINARY" ]; then
    echo "hooks: skipped: there is no binary $BINARY"
    exit 0
fi
BINARY=$(realpath "$BINARY")
VERSION=$("$BINARY" version --output yaml | sed -n 's/^version: "\{0,1\}\([^"]*\)"\{0,1\}$/\1/p')

# --- a made-up snap -----------------------------------------------------------------------------

export SNAP=$WORK/snap/kedge/x1 SNAP_COMMON=$WORK/common SNAP_NAME=kedge SNAP_INSTANCE_NAME=kedge SNAP_REVISION=x1
mkdir -p "$SNAP/bin" "$SNAP_COMMON"
ln -s x1 "$WORK/snap/kedge/current"
cp snap/local/env.sh packaging/upgrade.sh "$SNAP/bin/"
# It starts nothing; what it was asked is kept (the file asked).
cat >"$SNAP/bin/kedge" <<EOF
#!/bin/sh
echo "\$*" >>"$WORK/asked"
case "\$*" in
    version* | before-upgrade*) exec "$BINARY" "\$@" ;;
    "status --wait-ready"*) test ! -e "$WORK/never-ready" ;;
esac
EOF
printf '#!/bin/sh\n' | tee "$SNAP/bin/containerd" >"$SNAP/bin/runc"
# The settings are a JSON map in the file settings. A wish for a restart is kept.
cat >"$SNAP/bin/snapctl" <<'EOF'
#!/usr/bin/env python3
import json, os, sys
folder = os.environ["SNAP"].split("/snap/kedge")[0]
command, *words = sys.argv[1:]
if command == "get":
    known = json.load(open(f"{folder}/settings"))
    if words[0] == "-d":
        found = {key: known[key] for key in words[1:] if key in known}
        # As Go writes it.
        print(json.dumps(found, indent="\t").replace("<", "\\u003c"))
    else:
        value = known.get(words[0], "")
        print(value if isinstance(value, str) else json.dumps(value))
elif command == "services":
    print("Service       Startup  Current  Notes\nkedge.daemon  enabled  active   -")
elif command == "restart":
    open(f"{folder}/restarts", "a").write(" ".join(words) + "\n")
EOF
chmod 0755 "$SNAP"/bin/*

# The node's own socket. It says what it is told to (the file status), and the name of what it saved is kept.
export KEDGE_RUN_DIR=$WORK/run
mkdir "$KEDGE_RUN_DIR"
cat >"$WORK/node" <<'EOF'
import http.server, json, os, socketserver, sys
folder = sys.argv[1]
class Node(http.server.BaseHTTPRequestHandler):
    def answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())
    def do_GET(self):
        self.answer(200, open(f"{folder}/status").read())
    def do_POST(self):
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if os.path.exists(f"{folder}/full"):
            return self.answer(409, "No space left on device")
        open(f"{folder}/saved", "w").write(wish["name"])
        self.answer(200, json.dumps({"file": "/x", "objects": 1, "revision": 205, "bytes": 1, "time": "2026-01-01T00:00:00Z", "confirmed": True}))
    def log_message(self, *_): pass
socketserver.UnixStreamServer(f"{folder}/run/kedge.sock", Node).serve_forever()
EOF

# $1: the node's state, $2: its part in the datastore, then NAME:ROLE:HEALTHY of each member
node_is() {
    local state=$1 role=$2 name part healthy members=
    shift 2
    rm -f "$WORK"/{asked,saved,never-ready,full}
    for member in "$@"; do
        IFS=: read -r name part healthy <<<"$member"
        members+=${members:+, }$(printf '{"name": "%s", "id": "%s", "address": "", "role": "%s", "leader": false, "healthy": %s}' \
            "$name" "$name" "$part" "$healthy")
    done
    printf '{"state": "%s", "node": "a", "version": "%s", "datastore": {"role": "%s", "members": [%s]}}' \
        "$state" "$VERSION" "$role" "$members" >"$WORK/status"
    [ -z "$NODE" ] || { kill "$NODE"; wait "$NODE" 2>/dev/null; rm -f "$KEDGE_RUN_DIR/kedge.sock"; NODE=; }
    [ "$state" != stopped ] || return 0
    python3 "$WORK/node" "$WORK" &
    NODE=$!
    until [ -S "$KEDGE_RUN_DIR/kedge.sock" ]; do kill -0 "$NODE" || return; sleep 0.1; done
}
hook() { sh "snap/hooks/$1" >"$WORK/said" 2>&1; local status=$?; cat "$WORK/said"; return "$status"; }
said() { grep -F -- "$1" "$WORK/said"; }
saved() { grep -Fx -- "before-upgrade-from-$VERSION" "$WORK/saved"; }
facts() { grep -Fx -- "$1" "$SNAP_COMMON/upgrade-facts"; }

alone() {
    node_is ready leader a:voter:true
    hook pre-refresh && saved && facts "FROM=$VERSION SNAPSHOT=before-upgrade-from-$VERSION ALONE=yes"
}
one_of_three() {
    node_is ready voter a:voter:true b:voter:true c:voter:null
    hook pre-refresh && saved && facts "FROM=$VERSION SNAPSHOT=before-upgrade-from-$VERSION ALONE="
}
would_stand_still() {
    node_is ready voter a:voter:true b:voter:true c:voter:false
    ! hook pre-refresh && said "c does not answer: without this node the cluster would stand still" &&
        said "touch $SNAP_COMMON/upgrade-anyway" && ! saved && [ ! -e "$SNAP_COMMON/upgrade-facts" ]
}
# The cluster of the check before.
anyway() {
    touch "$SNAP_COMMON/upgrade-anyway"
    hook pre-refresh && saved && [ ! -e "$SNAP_COMMON/upgrade-anyway" ] && ! hook pre-refresh
}
does_not_matter() {
    node_is ready leader a:voter:true b:voter:true c:voter:true d:voter:true e:voter:false f:standby:false
    hook pre-refresh && node_is ready standby a:standby:true b:voter:true c:voter:false && hook pre-refresh
}
worker() {
    node_is ready ""
    hook pre-refresh && ! saved && facts "FROM=$VERSION SNAPSHOT= ALONE=yes"
}
not_saved() {
    node_is ready leader a:voter:true && touch "$WORK/full"
    ! hook pre-refresh && said "cannot be saved: No space left" && said "touch $SNAP_COMMON/upgrade-anyway" || return
    node_is degraded leader a:voter:true && touch "$WORK/full"
    hook pre-refresh && said "not saved before this upgrade: No space left" && [ ! -e "$SNAP_COMMON/upgrade-facts" ]
}
stopped() {
    node_is stopped ""
    hook pre-refresh && said "the node does not run" && ! saved && [ ! -e "$SNAP_COMMON/upgrade-facts" ]
}
becomes_ready() {
    node_is ready leader a:voter:true
    hook pre-refresh && hook post-refresh && grep "^start" "$WORK/asked" && [ ! -e "$SNAP_COMMON/upgrade-facts" ]
}
steps_back() {
    node_is ready leader a:voter:true && touch "$WORK/never-ready"
    hook pre-refresh && ! hook post-refresh && grep "^stop" "$WORK/asked" && said "snapd goes back to $VERSION" &&
        said "kedge snapshot restore before-upgrade-from-$VERSION"
}
was_not_ready() {
    node_is degraded leader a:voter:true && touch "$WORK/never-ready"
    hook pre-refresh && hook post-refresh && ! grep "^start" "$WORK/asked"
}

check "alone: the cluster is saved" alone
check "one of three: the cluster is saved" one_of_three
check "one of three while another is down: refused, with the remedy" would_stand_still
check "unless told otherwise, once" anyway
check "others that do not matter" does_not_matter
check "a worker has nothing to save" worker
check "a Ready node's cluster that cannot be saved: refused; one that is not Ready goes on" not_saved
check "a node that does not run: said" stopped
check "the new revision is started and Ready" becomes_ready
check "it does not become Ready: the hook fails, and says what to do" steps_back
check "a node that was not Ready before need not be" was_not_ready

# --- snap set -----------------------------------------------------------------------------------

DROP_IN=$SNAP_COMMON/config.yaml.d/50-snap-set.yaml
# $1: all settings, as JSON
set_to() { rm -f "$WORK/restarts" && echo "$1" >"$WORK/settings" && hook configure; }
counts() { KEDGE_CONFIG=$SNAP_COMMON/config.yaml "$BINARY" config show | tr -s ' ' | grep -F -- "$1"; }

nothing_set() { set_to '{}' && [ ! -e "$DROP_IN" ] && [ ! -e "$WORK/restarts" ]; }
every_kind() {
    printf '# mine\nnode-ip:\n- 192.0.2.7\n- fd00::7\nport: 7443\n' >"$SNAP_COMMON/config.yaml"
    cp "$SNAP_COMMON/config.yaml" "$WORK/before"
    set_to '{"port": 8443, "virtual-address": "192.0.2.9", "eviction-hard": "memory.available<50Mi",
        "node-labels": {"disk": "ssd"}, "addons": ["dns", "metrics"], "role": "worker", "mirrors":
        "docker.io=https://mirror.example:5000", "snapshot-interval": "off", "image-gc-high-threshold": 90}' || return
    cmp "$SNAP_COMMON/config.yaml" "$WORK/before" && grep -x kedge.daemon "$WORK/restarts" || return
    for line in "port: 8443 # $DROP_IN" "virtual-address: 192.0.2.9" 'eviction-hard: "memory.available<50Mi"' \
        "node-labels: disk=ssd" 'node-ip: "192.0.2.7,fd00::7"' "role: worker" "image-gc-high-threshold: 90"; do
        counts "$line" || { echo "not so: $line"; return 1; }
    done
    [ "$(stat -c %a "$DROP_IN")" = 644 ]
}
secret() {
    set_to "{\"join\": \"192.0.2.10:25000/$(printf '0%.0s' {1..52})/$(printf '0%.0s' {1..32})\"}" &&
        [ "$(stat -c %a "$DROP_IN")" = 600 ]
}
the_same_again() { set_to "$(tr -d '\n\t' <"$WORK/settings")" && [ ! -e "$WORK/restarts" ]; }
refused() {
    cp "$DROP_IN" "$WORK/before"
    ! set_to '{"virtual-address": "foo"}' && said "$DROP_IN: virtual-address: \"foo\" is not an IP address" &&
        cmp "$DROP_IN" "$WORK/before" && [ ! -e "$WORK/restarts" ] || return
    ! set_to '{"data-dir": "/srv"}' && said "data-dir cannot be set: the snap itself says it" && cmp "$DROP_IN" "$WORK/before"
}
unset_one() { set_to '{"role": "worker"}' && counts "port: 7443 # $SNAP_COMMON/config.yaml" && ! counts "disk=ssd"; }
unset_all() { set_to '{}' && [ ! -e "$DROP_IN" ] && grep -x kedge.daemon "$WORK/restarts" && counts "role: control-plane"; }
# What the node and every command see.
registries() { "$SNAP/bin/env.sh" sh -c 'echo "${KEDGE_REGISTRIES:-the setting}"'; }
own_registries() {
    [ "$(registries)" = "$SNAP_COMMON/registries.yaml" ] || return
    set_to '{"registries": "/etc/mine.yaml"}' && [ "$(registries)" = "the setting" ] && counts "registries: /etc/mine.yaml" || return
    set_to '{}' && echo 'registries: /etc/mine.yaml' >>"$SNAP_COMMON/config.yaml" && [ "$(registries)" = "the setting" ]
}

ln -f "$BINARY" "$SNAP/bin/kedge" 2>/dev/null || cp -f "$BINARY" "$SNAP/bin/kedge"
check "nothing set: no file" nothing_set
check "every kind of key makes one drop-in, and the owner's file stays" every_kind
check "the same again restarts nothing" the_same_again
check "what Kedge refuses or the snap says itself is refused" refused
check "a join string is nobody else's to read" secret
check "what is unset is gone, and the file counts again" unset_one
check "all unset" unset_all
check "registries.yaml lies beside the configuration, unless a setting names another" own_registries
echo "hooks: $PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
