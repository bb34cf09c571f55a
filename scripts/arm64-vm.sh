#!/usr/bin/env bash
# Boots an arm64 Debian 12 in qemu-system-aarch64 and runs `kedge install` to Ready in it: Debian's own
# arm64 kernel, systemd, containerd and cgroup v2. On another architecture everything is emulated: allow
# half an hour.
#
#   scripts/arm64-vm.sh [--binary FILE] [--keep]
#
# Without --binary it is built as scripts/cross.sh says. --keep leaves the disk in KEDGE_VM_DIR
# [/var/cache/kedge-vm] for the next run, which then begins with the boot. Needs root (for mounts),
# qemu-system-arm, debootstrap, e2fsprogs, cpio, kmod and 4 GB of disk. KEDGE_VM_TIMEOUT: seconds [3600].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/mirrors.sh

BINARY='' KEEP=
while [ $# -gt 0 ]; do
    case "$1" in
        --binary) BINARY=$2 && shift 2 ;;
        --keep) KEEP=yes && shift ;;
        *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
done
DIR=${KEDGE_VM_DIR:-/var/cache/kedge-vm}
TIMEOUT=${KEDGE_VM_TIMEOUT:-3600}
ROOT=$DIR/root DISK=$DIR/disk.ext4 MIRROR=$(debian_mirror)
PACKAGES=systemd-sysv,dbus,udev,iproute2,procps,kmod,ca-certificates,containerd,runc,containernetworking-plugins,nftables,conntrack

say() { printf '==> %s (%d s)\n' "$*" "$SECONDS"; }
fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}
export PATH="$PATH:/usr/sbin:/sbin"
[ "$(id -u)" = 0 ] || fail "root is needed: sudo scripts/arm64-vm.sh"
for tool in qemu-system-aarch64 debootstrap mkfs.ext4 cpio depmod; do
    command -v "$tool" >/dev/null ||
        fail "$tool is missing: apt-get install -y qemu-system-arm debootstrap e2fsprogs cpio kmod"
done
[ -n "$BINARY" ] || BINARY=$(scripts/cross.sh arm64)
[ "$(od -An -tu1 -j18 -N1 "$BINARY" | tr -d ' \n')" = 183 ] || fail "$BINARY is not a binary for arm64"

# --- the disk: Debian unpacked, kernel and an initrd with the few modules a virtual disk needs ---------

make_disk() {
    local packages version name module
    say "fetching and unpacking Debian for arm64"
    rm -rf --one-file-system -- "$ROOT" "$DIR/initrd"
    mkdir -p "$ROOT" "$DIR/initrd/bin" "$DIR/initrd/modules"
    # Unpacked only: the packages' scripts are arm64 programs and run in the machine, at its first boot.
    debootstrap --arch=arm64 --foreign --variant=minbase --include="$PACKAGES" bookworm "$ROOT" "$MIRROR" \
        >"$DIR/debootstrap.log" 2>&1 || { tail "$DIR/debootstrap.log" >&2; fail "debootstrap failed"; }
    say "fetching the kernel and a static shell"
    # apt with a state of its own: this machine's architectures stay as they are.
    mkdir -p "$DIR/apt/"{lists,archives/partial,etc}
    : >"$DIR/apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR bookworm main" >"$DIR/apt/sources"
    packages=(-o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$DIR/apt/lists"
        -o Dir::State::Status="$DIR/apt/status" -o Dir::Cache="$DIR/apt" -o Dir::Etc::SourceList="$DIR/apt/sources"
        -o Dir::Etc::SourceParts=/dev/null -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
    apt-get "${packages[@]}" update -q >"$DIR/apt.log" 2>&1
    name=$(apt-cache "${packages[@]}" depends linux-image-arm64 | sed -n 's/^ *Depends: \(linux-image-.*\)$/\1/p' | head -n 1)
    [ -n "$name" ] || fail "Debian's kernel for arm64 was not found"
    (cd "$DIR/apt" && apt-get "${packages[@]}" download -q "$name" busybox-static) >>"$DIR/apt.log" 2>&1
    # Not into the root itself: /lib is a link there, and the package's /lib would take its place.
    dpkg-deb --extract "$DIR"/apt/"$name"_*.deb "$DIR/image"
    mv "$DIR/image/lib/modules" "$ROOT/usr/lib/"
    dpkg-deb --extract "$DIR"/apt/busybox-static_*.deb "$DIR/busybox"
    version=$(ls "$ROOT/usr/lib/modules")
    depmod -b "$ROOT" "$version"
    cp "$DIR/image/boot/vmlinuz-$version" "$DIR/kernel"

    cp "$DIR/busybox/bin/busybox" "$DIR/initrd/bin/busybox"
    # In the order of their dependencies.
    for module in virtio_pci virtio_mmio virtio_blk virtio_net ext4 crc32c_generic; do
        modprobe -d "$ROOT" -S "$version" --show-depends "$module" 2>/dev/null | awk '/^insmod/ { print $2 }'
    done | awk '!seen[$0]++' >"$DIR/modules"
    while read -r module; do
        cp "$module" "$DIR/initrd/modules/"
        basename "$module"
    done <"$DIR/modules" >"$DIR/initrd/modules/order"
    cat >"$DIR/initrd/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install /bin
mkdir -p /proc /sys /dev /root
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
while [ ! -b /dev/vda ]; do sleep 1; done
mount -t ext4 /dev/vda /root || exec sh
if [ -e /root/debootstrap ]; then
    echo "FIRST BOOT: configuring the packages"
    mount -t proc proc /root/proc; mount -t sysfs sysfs /root/sys; mount --bind /dev /root/dev
    chroot /root /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin /debootstrap/debootstrap --second-stage || echo "RESULT 1"
    umount /root/dev /root/sys /root/proc
fi
umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /lib/systemd/systemd
INIT
    chmod 0755 "$DIR/initrd/init"
    ln -sf busybox "$DIR/initrd/bin/sh"
    (cd "$DIR/initrd" && find . | cpio --quiet -o -H newc | gzip -1) >"$DIR/initrd.gz"

    echo kedge-arm64 >"$ROOT/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 kedge-arm64\n' >"$ROOT/etc/hosts"
    echo "nameserver 10.0.2.3" >"$ROOT/etc/resolv.conf"
    mkdir -p "$ROOT/etc/systemd/system/multi-user.target.wants" "$ROOT/etc/systemd/network" "$ROOT/usr/local/sbin"
    # The whole test is one unit; its words on the console are what this script reads.
    cat >"$ROOT/usr/local/sbin/kedge-trial" <<'TRIAL'
#!/bin/sh
ip link set lo up
for device in /sys/class/net/e*; do
    ip link set "${device##*/}" up
    ip address add 10.0.2.15/24 dev "${device##*/}"
    ip route add default via 10.0.2.2
done
status=0
/root/kedge install --timeout 1800 && kedge status && uname -a && stat -fc 'cgroup: %T' /sys/fs/cgroup &&
    systemctl restart kedge && kedge status --wait-ready --timeout 900 && kedge uninstall || status=$?
[ "$status" = 0 ] || journalctl -u kedge --no-pager -n 40
echo "RESULT $status"
systemctl poweroff --force
TRIAL
    chmod 0755 "$ROOT/usr/local/sbin/kedge-trial"
    cat >"$ROOT/etc/systemd/system/kedge-trial.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=exec
ExecStart=/usr/local/sbin/kedge-trial
Environment=HOME=/root
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyAMA0
UNIT
    ln -sf ../kedge-trial.service "$ROOT/etc/systemd/system/multi-user.target.wants/kedge-trial.service"
    ln -sf /dev/null "$ROOT/etc/systemd/system/serial-getty@ttyAMA0.service"
    install -m 0755 "$BINARY" "$ROOT/root/kedge"
    say "making the disk"
    rm -f "$DISK"
    mkfs.ext4 -q -d "$ROOT" "$DISK" 4G
    rm -rf --one-file-system -- "$ROOT" "$DIR/initrd" "$DIR/busybox" "$DIR/apt" "$DIR/image"
}

mkdir -p "$DIR"
if [ -e "$DISK" ] && [ -e "$DIR/kernel" ]; then
    say "the disk of an earlier run is used, with a new binary"
    debugfs -w -R "rm /root/kedge" "$DISK" 2>/dev/null
    debugfs -w -R "write $BINARY /root/kedge" "$DISK" 2>/dev/null
    debugfs -w -R "set_inode_field /root/kedge mode 0100755" "$DISK" 2>/dev/null
else
    make_disk
fi

# --- the machine --------------------------------------------------------------------------------

say "booting; the console is kept in $DIR/console.log"
accelerate=(-accel "tcg,thread=multi" -cpu cortex-a72)
[ "$(uname -m)" != aarch64 ] || [ ! -w /dev/kvm ] || accelerate=(-accel kvm -cpu host)
timeout "$TIMEOUT" qemu-system-aarch64 -machine virt "${accelerate[@]}" -smp 2 -m 2048 -nographic -no-reboot \
    -kernel "$DIR/kernel" -initrd "$DIR/initrd.gz" -append "console=ttyAMA0 root=/dev/vda rw quiet" \
    -drive "file=$DISK,if=none,id=disk,format=raw,cache=unsafe" -device virtio-blk-pci,drive=disk \
    -netdev user,id=net,restrict=on -device virtio-net-pci,netdev=net,romfile= \
    </dev/null >"$DIR/console.log" 2>&1 || echo "qemu ended with $?" >>"$DIR/console.log"
result=$(tr -d '\r' <"$DIR/console.log" | sed -n 's/^RESULT \([0-9]*\)$/\1/p' | tail -n 1)
tail -n 40 "$DIR/console.log"
[ -n "$KEEP" ] || rm -f "$DISK" "$DIR/kernel" "$DIR/initrd.gz"
say "arm64: ${result:-no result within $TIMEOUT s}"
[ "$result" = 0 ]
