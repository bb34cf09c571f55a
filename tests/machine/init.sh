#!/usr/bin/env bash
# What a machine's firmware and initrd do: mounts, devices, a host name; then systemd is process 1.
# Called by machine_boot inside new namespaces: init.sh ROOT NAME
set -euo pipefail
root=$1 name=$2

hierarchies=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $3, $4, $2 }' /proc/self/mounts)
mount --bind "$root" "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
echo "$name" >run/kedge-machine

mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
while read -r device major minor; do
    mknod -m 666 "dev/$device" c "$major" "$minor"
done <<'DEVICES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
DEVICES
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
# systemd logs to the console: this script's output.
ln -s /proc/1/fd/1 dev/console

# The same cgroup hierarchies as outside; this namespace sees only its own part of each.
if [ "$(printf '%s\n' "$hierarchies" | head -n 1 | cut -d' ' -f3)" != /sys/fs/cgroup ]; then
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
fi
printf '%s\n' "$hierarchies" | while read -r type options folder; do
    case "$type" in
        cgroup2) options=rw ;;
        # Only the controllers and the name; rw and relatime are the mount's own.
        *) options=$(printf '%s' "$options" | tr , '\n' | grep -vE '^(rw|ro|relatime|nosuid|nodev|noexec)$' | paste -sd,) ;;
    esac
    mkdir -p ".$folder"
    mount -t "$type" -o "$options" "$type" ".$folder"
done

hostname "$name"
mkdir -p run/old
pivot_root . run/old
umount -l /run/old
rmdir /run/old
exec env -i container=kedge-test PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
    /lib/systemd/systemd --log-target=console --show-status=false
