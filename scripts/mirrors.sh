# shellcheck shell=bash
# Where Debian's and Ubuntu's packages come from, to be sourced: DEBIAN_MIRROR and UBUNTU_MIRROR, or what
# this machine's debootstrap takes by itself.

debian_mirror() {
    local program
    [ -z "${DEBIAN_MIRROR:-}" ] || { echo "$DEBIAN_MIRROR"; return; }
    program=$(PATH="$PATH:/usr/sbin:/sbin" command -v debootstrap) || return
    sed -n 's/^DEF_MIRROR="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$program" | head -n 1
}

ubuntu_mirror() {
    local part=archive
    [ -z "${UBUNTU_MIRROR:-}" ] || { echo "$UBUNTU_MIRROR"; return; }
    [ "$(uname -m)" = x86_64 ] || part=ports
    sed -n "s|^[[:space:]]*default_mirror \(http[s]*://$part\..*\)$|\1|p" /usr/share/debootstrap/scripts/gutsy | head -n 1
}
