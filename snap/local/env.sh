#!/bin/sh
# What every app of the snap and its hooks see. Programs are found through `current`, never through this
# revision: containerd's shims live on after a refresh, and their revision's tree is removed some day.
here=$SNAP
current=${SNAP%/*}/current
if [ "$(readlink -f "$current")" = "$(readlink -f "$SNAP")" ]; then
    here=$current
fi
common=$SNAP_COMMON

export PATH="$here/bin:$here/usr/sbin:$here/usr/bin:$here/sbin:$PATH"
export KEDGE_DATA_DIR="${KEDGE_DATA_DIR:-$common/data}"
export KEDGE_RUN_DIR="${KEDGE_RUN_DIR:-/run/snap.${SNAP_INSTANCE_NAME:-$SNAP_NAME}}"
export KEDGE_CONFIG="${KEDGE_CONFIG:-$common/config.yaml}"
# A file that is named must be there; who is not root finds the one that root made.
[ "$KEDGE_CONFIG" != "$common/config.yaml" ] || [ -e "$KEDGE_CONFIG" ] || touch "$KEDGE_CONFIG" 2>/dev/null || true
export KEDGE_CONTAINERD="${KEDGE_CONTAINERD:-$here/bin/containerd}"
export KEDGE_CNI_BIN_DIR="${KEDGE_CNI_BIN_DIR:-$here/cni}"
# Beside the configuration, unless that names another file.
if ! grep -qs '^[[:space:]]*"\{0,1\}registries"\{0,1\}:' "$KEDGE_CONFIG" "$KEDGE_CONFIG.d"/*.yaml "$KEDGE_CONFIG.d"/*.yml; then
    export KEDGE_REGISTRIES="${KEDGE_REGISTRIES:-$common/registries.yaml}"
fi
export CONTAINERD_ADDRESS="${CONTAINERD_ADDRESS:-$KEDGE_RUN_DIR/containerd/containerd.sock}"
export CONTAINERD_NAMESPACE="${CONTAINERD_NAMESPACE:-k8s.io}"

# Hooks read this file and go on.
if [ $# -gt 0 ]; then
    exec "$@"
fi
