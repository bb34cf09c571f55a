# shellcheck shell=bash
# Fresh machines for tests, to be sourced: a Debian or Ubuntu of its own, with systemd as process 1, in
# namespaces of this machine (no virtual machine, no registry of images). Root is needed.
#
#   machine_supported            says why not on stdout and fails where this machine cannot do it
#   machine_make DIST NAME       a fresh root folder (debian = Debian 12, ubuntu = Ubuntu 24.04)
#   machine_boot NAME            boots it; machine_reboot NAME; machine_stop NAME
#   machine_run NAME CMD...      runs a command in it as a service of its systemd would run
#                                (MACHINE_RUN_FLAGS: further flags of systemd-run)
#   machine_remove NAME          stops it and deletes its root folder
#   machine_root NAME            prints the root folder
#   check TITLE COMMAND...       one test: counts in PASSED and FAILED, shows the output (kept in the file OUTPUT)
#                                when it fails; CURRENT, when set, names the machine before the title
#
# Downloads are kept in KEDGE_MACHINE_CACHE [/var/cache/kedge-machines]; machines live in
# KEDGE_MACHINE_DIR [a folder of /var/tmp]. Both lie outside the repository.

. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/mirrors.sh"
MACHINE_CACHE=${KEDGE_MACHINE_CACHE:-/var/cache/kedge-machines}
MACHINE_DIR=${KEDGE_MACHINE_DIR:-}
# What kedge needs: the package's dependencies, fetched into the image but not installed, so that the
# machine is as a user's fresh one and install.sh needs no network here.
MACHINE_DEBS="containerd runc containernetworking-plugins nftables conntrack ca-certificates kmod"
# For some tests only.
MACHINE_MORE_DEBS="ufw firewalld netbase python3-minimal"

machine_have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

machine_supported() {
    local tool
    [ "$(id -u)" = 0 ] || { echo "root is needed"; return 1; }
    for tool in debootstrap unshare nsenter ip; do
        machine_have "$tool" || { echo "there is no $tool"; return 1; }
    done
    unshare --mount --uts --ipc --pid --net --cgroup --fork true 2>/dev/null ||
        { echo "the kernel gives no namespaces"; return 1; }
}

# DIST -> suite, mirror, debootstrap script, further flags
machine_distribution() {
    case "$1" in
        debian)
            SUITE=bookworm COMPONENTS=main MIRROR=$(debian_mirror) ;;
        ubuntu)
            SUITE=noble COMPONENTS=main,universe MIRROR=$(ubuntu_mirror) ;;
        *) echo "no such distribution: $1" >&2; return 2 ;;
    esac
}

# The cached, untouched root folder of a distribution. Prints its path.
machine_image() {
    local image script flags=()
    machine_distribution "$1" || return
    image=$MACHINE_CACHE/$SUITE
    if [ ! -e "$image.done" ]; then
        mkdir -p "$MACHINE_CACHE"
        rm -rf --one-file-system -- "$image"
        script=/usr/share/debootstrap/scripts/$SUITE
        # An older debootstrap does not know the newest Ubuntu by name; they all are made alike.
        if [ "$1" = ubuntu ]; then
            [ -e "$script" ] || script=/usr/share/debootstrap/scripts/gutsy
            # These roots are thrown away after the test. With Ubuntu's keyring they are checked all the same.
            [ -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ] || flags+=(--no-check-gpg)
        fi
        # What is missing on every real machine that boots is added: systemd, dbus, iproute2.
        debootstrap "${flags[@]}" --variant=minbase --components="$COMPONENTS" \
            --include=systemd,systemd-sysv,dbus,iproute2,procps \
            "$SUITE" "$image" "$MIRROR" "$script" >"$image.log" 2>&1 ||
            { tail -n 5 "$image.log" >&2; return 1; }
        # shellcheck disable=SC2086 # a list of words
        { chroot "$image" apt-get update -q &&
            chroot "$image" apt-get install -y -q --no-install-recommends --download-only $MACHINE_DEBS; } \
            >>"$image.log" 2>&1 || { tail -n 5 "$image.log" >&2; return 1; }
        touch "$image.done"
    fi
    if [ "$(cat "$image.more-debs" 2>/dev/null)" != "$MACHINE_MORE_DEBS" ]; then
        # shellcheck disable=SC2086 # a list of words
        { chroot "$image" apt-get update -q &&
            chroot "$image" apt-get install -y -q --no-install-recommends --download-only $MACHINE_MORE_DEBS; } \
            >>"$image.log" 2>&1 && echo "$MACHINE_MORE_DEBS" >"$image.more-debs"
    fi
    echo "$image"
}

machine_root() { echo "$MACHINE_DIR/$1"; }

machine_make() {
    local image root
    if [ -z "$MACHINE_DIR" ]; then
        MACHINE_DIR=$(mktemp -d /var/tmp/kedge-machines.XXXXXX)
    fi
    image=$(machine_image "$1") || return
    root=$(machine_root "$2")
    mkdir -p "$root"
    cp -a --reflink=auto "$image/." "$root/" || return
    echo "$2" >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$2" >"$root/etc/hosts"
    # Nothing to find out, nobody to ask: no resolver, no login prompts.
    rm -f "$root/etc/resolv.conf"
    echo "nameserver 192.0.2.1" >"$root/etc/resolv.conf"
    : >"$root/etc/machine-id"
    ln -sf /dev/null "$root/etc/systemd/system/console-getty.service"
    ln -sf /dev/null "$root/etc/systemd/system/systemd-networkd-wait-online.service"
}

# Every cgroup hierarchy of this machine: "type options folder".
machine_hierarchies() {
    awk '$3 == "cgroup" || $3 == "cgroup2" { print $3, $4, $2 }' /proc/self/mounts
}

machine_boot() {
    local name=$1 root net router type folder
    root=$(machine_root "$name")
    net=kedge-m-$name router=kedge-r-$name
    ip netns add "$net" && ip netns add "$router" || return
    # The machine has an address and a default route; the router at its end knows no way to anybody and
    # says so at once.
    ip -n "$net" link add eth0 type veth peer name eth0 netns "$router" &&
        ip -n "$router" addr add 198.51.100.1/24 dev eth0 && ip -n "$router" link set eth0 up &&
        ip netns exec "$router" sysctl -q -w net.ipv4.ip_forward=1 &&
        ip -n "$net" addr add 198.51.100.10/24 dev eth0 &&
        ip -n "$net" link set lo up && ip -n "$net" link set eth0 up &&
        ip -n "$net" route add default via 198.51.100.1 || return
    machine_hierarchies | while read -r type _ folder; do
        mkdir -p "$folder/kedge-m-$name"
        if [ -e "$folder/kedge-m-$name/cpuset.cpus" ] && [ "$type" = cgroup ]; then
            cat "$folder/cpuset.cpus" >"$folder/kedge-m-$name/cpuset.cpus"
            cat "$folder/cpuset.mems" >"$folder/kedge-m-$name/cpuset.mems"
        fi
    done
    (
        while read -r _ _ folder; do
            echo "$BASHPID" >"$folder/kedge-m-$name/cgroup.procs"
        done < <(machine_hierarchies)
        exec setsid nsenter --net="/run/netns/$net" \
            unshare --mount --uts --ipc --pid --cgroup --fork --kill-child=SIGKILL --propagation private \
            bash "${BASH_SOURCE[0]%/*}/init.sh" "$root" "$name"
    ) >"$root.console" 2>&1 </dev/null &
    echo $! >"$root.pid"
    # Up when systemd says so. A unit that failed (a test machine has no kernel log, for one) is no matter.
    local tries=0 state
    while :; do
        state=$(machine_nsenter "$name" systemctl is-system-running 2>/dev/null)
        case "$state" in running | degraded) return 0 ;; esac
        tries=$((tries + 1))
        if [ "$tries" -gt 600 ] || ! kill -0 "$(cat "$root.pid")" 2>/dev/null; then
            echo "the machine $name did not boot (systemd says: ${state:-nothing}); its console:" >&2
            tail -n 20 "$root.console" >&2
            return 1
        fi
        sleep 0.2
    done
}

# The machine's process 1 as this machine sees it.
machine_init() {
    local outer
    outer=$(cat "$(machine_root "$1").pid") || return
    # setsid may have forked; unshare always does: go down while there is one child only.
    while [ "$(cat "/proc/$outer/root/run/kedge-machine" 2>/dev/null)" != "$1" ] ||
        [ "$(awk '/^NSpid/ { print $NF }' "/proc/$outer/status" 2>/dev/null)" != 1 ]; do
        outer=$(cut -d' ' -f1 "/proc/$outer/task/$outer/children" 2>/dev/null)
        [ -n "$outer" ] || return 1
    done
    echo "$outer"
}

machine_nsenter() {
    local init
    init=$(machine_init "$1") || return
    shift
    nsenter --target "$init" --mount --uts --ipc --net --pid --cgroup --root --wdns=/ \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
}

machine_run() {
    local name=$1
    shift
    # shellcheck disable=SC2086 # a list of words
    machine_nsenter "$name" systemd-run ${MACHINE_RUN_FLAGS:-} --quiet --pipe --wait --collect --setenv=HOME=/root \
        --setenv=DEBIAN_FRONTEND=noninteractive --working-directory=/root -- "$@" </dev/null
}

machine_wait_gone() {
    local outer tries=0
    outer=$(cat "$(machine_root "$1").pid")
    while kill -0 "$outer" 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 900 ] || return 1
        sleep 0.1
    done
}

# What a switched-off machine leaves behind here: a network namespace and empty cgroups.
machine_clear() {
    local folder tries
    ip netns del "kedge-m-$1" 2>/dev/null
    ip netns del "kedge-r-$1" 2>/dev/null
    machine_hierarchies | while read -r _ _ folder; do
        # Processes that were killed leave their cgroup a moment later.
        tries=0
        while [ -d "$folder/kedge-m-$1" ] && [ "$tries" -lt 50 ]; do
            find "$folder/kedge-m-$1" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
            tries=$((tries + 1))
        done
    done
    return 0
}

machine_reboot() {
    machine_nsenter "$1" systemctl reboot >/dev/null 2>&1
    machine_wait_gone "$1" || { echo "the machine $1 does not go down" >&2; return 1; }
    machine_clear "$1"
    machine_boot "$1"
}

machine_stop() {
    local outer init
    [ -e "$(machine_root "$1").pid" ] || return 0
    outer=$(cat "$(machine_root "$1").pid")
    init=$(machine_init "$1") && kill -KILL "$init" 2>/dev/null
    # Process 1 takes all others with it, and unshare ends after it.
    [ -n "$init" ] || kill -KILL "$outer" 2>/dev/null
    machine_wait_gone "$1"
    # The shell need not tell that it was killed.
    wait "$outer" 2>/dev/null
    rm -f "$(machine_root "$1").pid"
    machine_clear "$1"
}

machine_remove() {
    machine_stop "$1"
    rm -rf --one-file-system -- "$(machine_root "$1")" "$(machine_root "$1").console"
    rmdir "$MACHINE_DIR" 2>/dev/null || true
}

check() {
    local title=${CURRENT:+$CURRENT: }$1 start=$SECONDS
    shift
    # In this shell: a check may set variables.
    if "$@" >"$OUTPUT" 2>&1; then
        PASSED=$((PASSED + 1))
        printf 'ok      %4d s  %s\n' $((SECONDS - start)) "$title"
        return 0
    fi
    FAILED=$((FAILED + 1))
    printf 'FAILED  %4d s  %s\n' $((SECONDS - start)) "$title"
    tail -n 60 "$OUTPUT"
    return 1
}
