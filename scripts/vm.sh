#!/usr/bin/env bash
# Kedge in a virtual machine: Debian with its own kernel, systemd, containerd and nothing but cgroup v2.
#
#   scripts/vm.sh [--binary FILE] [--suite NAME] [--memory MB] [--trial NAME]... [--cuts NUMBER] [--seed NUMBER]
#                 [amd64|arm64]
#
# The trials, each on a fresh machine (all of them by default; what they do is in tests/machine/trial.sh):
#   tour       install.sh to Ready, the README's tour, limits, kill -9, a reboot, uninstall (2048 MB)
#   small      512 MB, the class of a Raspberry Pi Zero 2: does it come up, and stay
#   no-memory  a kernel without the memory controller: install must refuse and change nothing
#   power      the power is cut twice during the installation, --cuts times [5] under writes, and after a snapshot,
#              on a disk with a volatile cache: what was acknowledged must be there (scripts/vm-power.sh)
#
# Without an architecture it is this machine's; another one is emulated, which takes half an hour and
# more. Without --binary it is the release binary under target/, or one that scripts/cross.sh builds.
# Needs root, qemu, debootstrap, e2fsprogs, cpio, kmod and 3 GB in KEDGE_VM_DIR [/var/cache/kedge-vm],
# where the disks stay for the next run (delete them when you like). KEDGE_VM_TIMEOUT: seconds a trial
# (of "power": a boot) may take [1800; 7200 when emulated]. "power" needs python3, and its --seed is
# printed. Prints "N passed, N failed, N skipped" last, and skips all, with the reason, on a machine that
# cannot run it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
. scripts/mirrors.sh
. scripts/vm-power.sh
export PATH="$PATH:/usr/sbin:/sbin"

BINARY='' SUITE=trixie MEMORY='' ARCH='' CUTS=5 SEED='' trials=()
while [ $# -gt 0 ]; do
    case "$1" in
        --binary) BINARY=$2 && shift 2 ;;
        --suite) SUITE=$2 && shift 2 ;;
        --memory) MEMORY=$2 && shift 2 ;;
        --trial) trials+=("$2") && shift 2 ;;
        --cuts) CUTS=$2 && shift 2 ;;
        --seed) SEED=$2 && shift 2 ;;
        amd64 | arm64) ARCH=$1 && shift ;;
        *) sed -n '2,20s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
[ ${#trials[@]} -gt 0 ] || trials=(tour small no-memory power)
for trial in "${trials[@]}"; do
    case "$trial" in tour | small | no-memory | power) ;; *) echo "no such trial: $trial" >&2 && exit 2 ;; esac
done
case "$(uname -m)" in aarch64) OWN=arm64 ;; *) OWN=amd64 ;; esac
[ -n "$ARCH" ] || ARCH=$OWN
case "$ARCH" in
    # qemu 7.2's emulation of cmpxchg16b spoils the flags, which kernels do not survive; page tables of five
    # levels only make it slow; and of two emulated processors one now and then sees old memory.
    amd64)
        QEMU=qemu-system-x86_64 PACKAGE=qemu-system-x86 MACHINE=q35 CPU=max,cx16=off,la57=off SMP=1
        CONSOLE=ttyS0 ELF=62 TRIPLE=x86_64
        ;;
    # The processor of a Raspberry Pi 4.
    arm64)
        QEMU=qemu-system-aarch64 PACKAGE=qemu-system-arm MACHINE=virt CPU=cortex-a72 SMP=2
        CONSOLE=ttyAMA0 ELF=183 TRIPLE=aarch64
        ;;
esac
DIR=${KEDGE_VM_DIR:-/var/cache/kedge-vm}
NAME=$SUITE-$ARCH
DISK=$DIR/$NAME.ext4 KERNEL=$DIR/$NAME.kernel INITRD=$DIR/$NAME.initrd
# What is on the machine before install.sh comes, which so needs no network: Kedge's dependencies, kubectl,
# and what the trials look with.
PACKAGES=systemd-sysv,dbus,udev,iproute2,procps,kmod,ca-certificates,curl,busybox-static
PACKAGES=$PACKAGES,containerd,runc,containernetworking-plugins,nftables,conntrack,kubernetes-client

PASSED=0 FAILED=0 SKIPPED=0
say() { printf '==> %s (%d s)\n' "$*" "$SECONDS"; }
closing() {
    echo "virtual machines, $NAME: $PASSED passed, $FAILED failed, $SKIPPED skipped"
    [ "$FAILED" = 0 ]
}
skip_all() {
    echo "skipped: virtual machines cannot be run here: $1"
    SKIPPED=${#trials[@]}
    closing
    exit
}

why_not() {
    local tool
    [ "$(id -u)" = 0 ] || { echo "root is needed"; return; }
    for tool in "$QEMU" debootstrap mkfs.ext4 cpio depmod; do
        command -v "$tool" >/dev/null || {
            echo "there is no $tool (apt-get install -y $PACKAGE debootstrap e2fsprogs cpio kmod)"
            return
        }
    done
    [ -e "$DISK" ] || curl -fsI --max-time 20 "$(debian_mirror)/dists/$SUITE/InRelease" >/dev/null ||
        echo "Debian's packages cannot be reached"
}
why=$(why_not)
[ -z "$why" ] || skip_all "$why"

if [ -z "$BINARY" ]; then
    BINARY=${CARGO_TARGET_DIR:-target}/$TRIPLE-unknown-linux-gnu/release/kedge
    [ -e "$BINARY" ] || [ "$ARCH" = "$OWN" ] || BINARY=$(scripts/cross.sh "$ARCH") || exit
fi
[ -f "$BINARY" ] || { echo "error: there is no binary $BINARY; build it or name one with --binary" >&2; exit 2; }
[ "$(od -An -tu1 -j18 -N1 "$BINARY" | tr -d ' \n')" = "$ELF" ] || { echo "error: $BINARY is not for $ARCH" >&2; exit 2; }

WORK=$(mktemp -d /var/tmp/kedge-vm.XXXXXX)
QEMU_PID='' DISK_PID=''
clean_up() {
    local status=$?
    trap - EXIT INT TERM
    [ -z "$QEMU_PID" ] || kill "$QEMU_PID" 2>/dev/null
    [ -z "$DISK_PID" ] || kill "$DISK_PID" 2>/dev/null
    rm -rf --one-file-system -- "$WORK"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the machine --------------------------------------------------------------------------------

# The processor of this machine where its kernel lends it, else an emulated one.
ACCELERATE=(-accel "tcg,thread=multi" -cpu "$CPU" -smp "$SMP") LIMIT=${KEDGE_VM_TIMEOUT:-7200} HOW=emulated
lends_processor() {
    # Some kernels have the device and cannot: asked in a shell of its own, which keeps the crash to itself.
    [ "$ARCH" = "$OWN" ] && [ -w /dev/kvm ] && (
        { sleep 1; echo quit; } | timeout 20 "$QEMU" -machine "$MACHINE" -accel kvm -cpu host -m 64 \
            -display none -monitor stdio -serial none
    ) >/dev/null 2>&1
}
if lends_processor; then
    ACCELERATE=(-accel kvm -cpu host -smp 2) LIMIT=${KEDGE_VM_TIMEOUT:-1800} HOW="on this processor"
fi

# boot DRIVE MEMORY KERNEL-WORDS CONSOLE-FILE TAR [WATCHER]: runs the machine until it switches itself off, or
# until the function WATCHER, which is given the console's file, has killed it: the power is cut.
# What is said to be for the reader goes to stdout as it comes.
boot() {
    local status follower watcher=
    : >"$4"
    rm -f "$WORK/qemu.pid"
    # -no-reboot is not given: the trials reboot, and a kernel that is booted directly boots again.
    timeout "$LIMIT" "$QEMU" -pidfile "$WORK/qemu.pid" -machine "$MACHINE" "${ACCELERATE[@]}" -m "$2" -display none -monitor none \
        -serial "file:$4" -kernel "$KERNEL" -initrd "$INITRD" \
        -append "console=$CONSOLE root=/dev/vda rw quiet loglevel=3 systemd.show_status=false panic=5 $3" \
        -drive "$1,if=none,id=disk,format=raw" -device virtio-blk-pci,drive=disk \
        -drive "file=$5,if=none,id=trial,format=raw,readonly=on" -device virtio-blk-pci,drive=trial \
        -netdev user,id=net,restrict=on -device virtio-net-pci,netdev=net,romfile= -device virtio-rng-pci \
        </dev/null >>"$4.qemu" 2>&1 &
    QEMU_PID=$!
    tail -n +1 -s 1 -f --pid="$QEMU_PID" "$4" 2>/dev/null | sed -un 's/\r$//; s/^TRIAL: //p' &
    follower=$!
    [ -z "${6:-}" ] || { "$6" "$4" & watcher=$!; }
    wait "$QEMU_PID" 2>/dev/null
    status=$?
    QEMU_PID=
    wait "$follower"
    [ -z "$watcher" ] || { kill "$watcher" && wait "$watcher"; } 2>/dev/null
    case "$status" in
        0) return 0 ;;
        137) [ -n "$watcher" ] && return 137 ;;
    esac
    case "$status" in
        124) echo "the machine did not finish within $LIMIT s" ;;
        *) cat "$4.qemu" && echo "qemu ended with $status" ;;
    esac
    return 1
}

# --- the disk: Debian unpacked, kernel and an initrd with the few modules a virtual disk needs -----

make_disk() {
    local mirror packages version name module foreign root=$WORK/root
    mirror=$(debian_mirror)
    say "fetching and unpacking Debian $SUITE for $ARCH"
    mkdir -p "$DIR" "$root" "$WORK/initrd/bin" "$WORK/initrd/modules"
    # For another processor they are unpacked only: the packages' scripts are programs for it, and run in the
    # machine, at its first boot.
    [ "$ARCH" = "$OWN" ] || foreign=--foreign
    # shellcheck disable=SC2086 # nothing, or one word
    debootstrap --arch="$ARCH" ${foreign:-} --variant=minbase --include="$PACKAGES" "$SUITE" "$root" "$mirror" \
        >"$WORK/debootstrap.log" 2>&1 || { tail "$WORK/debootstrap.log" >&2; return 1; }
    say "fetching the kernel"
    # apt with a state of its own: this machine's architectures stay as they are.
    mkdir -p "$WORK/apt/"{lists,archives/partial,etc}
    : >"$WORK/apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $SUITE main" >"$WORK/apt/sources"
    packages=(-o APT::Architecture="$ARCH" -o APT::Architectures::="$ARCH" -o Dir::State::Lists="$WORK/apt/lists"
        -o Dir::State::Status="$WORK/apt/status" -o Dir::Cache="$WORK/apt" -o Dir::Etc::SourceList="$WORK/apt/sources"
        -o Dir::Etc::SourceParts=/dev/null -o Debug::NoLocking=1 -o APT::Sandbox::User=root
        # A mirror may be days behind.
        -o Acquire::Check-Valid-Until=false)
    apt-get "${packages[@]}" update -q >"$WORK/apt.log" 2>&1
    name=$(apt-cache "${packages[@]}" depends "linux-image-cloud-$ARCH" | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1)
    [ -n "$name" ] || { tail "$WORK/apt.log" >&2; echo "Debian's kernel for $ARCH was not found" >&2; return 1; }
    (cd "$WORK/apt" && apt-get "${packages[@]}" download -q "$name" busybox-static) >>"$WORK/apt.log" 2>&1 ||
        { tail "$WORK/apt.log" >&2; return 1; }
    # Not into the root itself: /lib is a link there, and the package's /lib would take its place.
    dpkg-deb --extract "$WORK"/apt/"$name"_*.deb "$WORK/image"
    dpkg-deb --extract "$WORK"/apt/busybox-static_*.deb "$WORK/busybox"
    mkdir -p "$root/usr/lib/modules"
    cp -a "$WORK"/image/{lib,usr/lib}/modules/. "$root/usr/lib/modules/" 2>/dev/null
    version=$(ls "$root/usr/lib/modules")
    depmod -b "$root" "$version" || return
    cp "$WORK/image/boot/vmlinuz-$version" "$KERNEL" || return

    cp "$WORK"/busybox/{bin,usr/bin}/busybox "$WORK/initrd/bin/" 2>/dev/null
    # In the order of their dependencies.
    for module in virtio_pci virtio_mmio virtio_blk virtio_net ext4 crc32c_generic; do
        modprobe -d "$root" -S "$version" --show-depends "$module" 2>/dev/null | awk '/^insmod/ { print $2 }'
    done | awk '!seen[$0]++' >"$WORK/modules"
    while read -r module; do
        # The initrd's shell unpacks none of the formats that kernels' modules come in.
        case "$module" in
            *.xz) xz -dc "$module" >"$WORK/initrd/modules/$(basename "$module" .xz)" ;;
            *.zst) zstd -dc "$module" >"$WORK/initrd/modules/$(basename "$module" .zst)" ;;
            *) cp "$module" "$WORK/initrd/modules/" ;;
        esac || return
        module=${module##*/} module=${module%.xz}
        echo "${module%.zst}"
    done <"$WORK/modules" >"$WORK/initrd/modules/order"
    cat >"$WORK/initrd/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install /bin
mkdir -p /proc /sys /dev /root
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
while [ ! -b /dev/vda ]; do sleep 1; done
mount -t ext4 /dev/vda /root || { echo "TRIAL: the disk cannot be mounted"; poweroff -f; }
if [ -e /root/debootstrap ]; then
    mount -t proc proc /root/proc; mount -t sysfs sysfs /root/sys; mount -o bind /dev /root/dev
    chroot /root /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
        /debootstrap/debootstrap --second-stage && echo "TRIAL: the packages are configured"
    rm -rf /root/var/cache/apt/archives/*.deb
    [ ! -e /root/debootstrap ] || tail -n 20 /root/debootstrap/debootstrap.log
    umount /root/dev; umount /root/sys; umount /root/proc; umount /root
    sync
    poweroff -f
fi
umount /proc /sys
mount -o move /dev /root/dev
exec switch_root /root /lib/systemd/systemd
INIT
    chmod 0755 "$WORK/initrd/init"
    ln -sf busybox "$WORK/initrd/bin/sh"
    (cd "$WORK/initrd" && find . | cpio --quiet -o -H newc | gzip -1) >"$INITRD" || return

    [ -n "${foreign:-}" ] || rm -f "$root"/var/cache/apt/archives/*.deb
    : >"$root/etc/machine-id"
    echo kedge-vm >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 kedge-vm\n' >"$root/etc/hosts"
    echo "nameserver 10.0.2.3" >"$root/etc/resolv.conf"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/etc/systemd/network"
    printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n' \
        >"$root/etc/systemd/network/10-wire.network"
    ln -sf /usr/lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"
    # The trial is one unit, and comes on a disk of its own, a bare tar archive; its words on the console
    # are what this script reads.
    cat >"$root/etc/systemd/system/vm-trial.service" <<UNIT
[Unit]
After=multi-user.target
[Service]
Type=exec
ExecStart=/bin/sh -c 'mkdir -p /run/trial && tar -xf /dev/vdb -C /run/trial && exec /run/trial/trial.sh'
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WorkingDirectory=/root
StandardOutput=tty
StandardError=tty
TTYPath=/dev/$CONSOLE
# A process that is stopped for lack of memory must not take the trial along.
OOMPolicy=continue
UNIT
    ln -sf ../vm-trial.service "$root/etc/systemd/system/multi-user.target.wants/vm-trial.service"
    ln -sf /dev/null "$root/etc/systemd/system/serial-getty@$CONSOLE.service"
    # Debian's containerd would run beside Kedge's own; a user's machine has it too, so it stays enabled.
    say "making the disk, 4 GB and mostly empty"
    rm -f "$DISK"
    mkfs.ext4 -q -E root_owner=0:0 -d "$root" "$WORK/disk" 4G && cp --sparse=always "$WORK/disk" "$DISK" || return
    rm -rf --one-file-system -- "$root" "$WORK/disk" "$WORK/image" "$WORK/apt"
    [ "$ARCH" != "$OWN" ] || return 0
    say "the first boot configures the packages ($HOW)"
    : >"$WORK/empty"
    truncate -s 10240 "$WORK/empty"
    boot "file=$DISK,cache=unsafe" 1024 "" "$WORK/first.log" "$WORK/empty" >"$WORK/first.out"
    if ! grep -q "the packages are configured" "$WORK/first.out"; then
        tail -n 30 "$WORK/first.log"
        return 1
    fi
}

# --- the trials ---------------------------------------------------------------------------------

# run_trial NAME MEMORY KERNEL-WORDS
run_trial() {
    local log=$DIR/$NAME-$1.log folder=$WORK/trial start=$SECONDS line
    rm -rf "$folder" && mkdir -p "$folder"
    cp install.sh tests/machine/trial.sh "$folder/" && cp "$BINARY" "$folder/kedge" || return
    echo "$1" >"$folder/name"
    tar -C "$folder" --owner=0 --group=0 -cf "$WORK/trial.tar" .
    say "$1: $2 MB, $HOW; its console: $log"
    rm -f "$log.qemu"
    # What the machine writes to its disk is forgotten when it is switched off.
    boot "file=$DISK,cache=unsafe,snapshot=on" "$2" "$3" "$log" "$WORK/trial.tar" || FAILED=$((FAILED + 1))
    line=$(tr -d '\r' <"$log")
    PASSED=$((PASSED + $(grep -c '^TRIAL: ok ' <<<"$line")))
    FAILED=$((FAILED + $(grep -c '^TRIAL: FAILED ' <<<"$line")))
    if ! grep -q '^TRIAL: done' <<<"$line"; then
        FAILED=$((FAILED + 1))
        echo "$1 did not come to its end; the end of its console:"
        tail -n 30 "$log"
    fi
    say "$1 took $((SECONDS - start)) s"
}

if [ ! -e "$DISK.done" ]; then
    if ! make_disk; then
        FAILED=1
        closing
        exit
    fi
    touch "$DISK.done"
fi
for trial in "${trials[@]}"; do
    case "$trial" in
        tour) run_trial tour "${MEMORY:-2048}" "" ;;
        small) run_trial small "${MEMORY:-512}" "" ;;
        no-memory) run_trial no-memory "${MEMORY:-1024}" cgroup_disable=memory ;;
        power) power_trial "${MEMORY:-2048}" ;;
    esac
done
closing
