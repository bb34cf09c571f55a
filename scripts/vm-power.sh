# shellcheck shell=bash
# The trial "power" of scripts/vm.sh, to be sourced by it: qemu is killed (SIGKILL) at moments that the seed
# says, while a write waits for its flush, and started again on the same disk. What the machine had not flushed
# is gone: its memory with the page cache, and of what the disk was given since the last flush as much as
# tests/machine/disk.py, which also does the killing, loses. Each number that the console showed as acknowledged before must be there after.
#
# KEDGE_VM_LIES=1: the disk ignores flushes once there are writes, and the trial must fail.
# shellcheck disable=SC2153,SC2154 # vm.sh's variables

# power_acknowledged CONSOLE: the number that each writer reached, together with those of the boots before.
power_acknowledged() {
    local so_far
    # A line that the cut left unfinished has no semicolon.
    so_far=$(tr -d '\r' <"$1" | sed -n 's/^.*ACK \([a-z]* [0-9]*\);$/\1/p' | cat "$WORK/acknowledged" - |
        awk '$2 > last[$1] { last[$1] = $2 } END { for (writer in last) print writer, last[writer] }' | sort)
    printf '%s' "${so_far:+$so_far$'\n'}" >"$WORK/acknowledged"
}

# The watchers: each waits for its moment; boot ends those that still wait when qemu has ended.
power_wait_for() { # CONSOLE PATTERN COUNT
    while [ "$(grep -c "$2" "$1")" -lt "$3" ]; do sleep 0.2; done
}
power_cut() { sleep "$AFTER" && kill -USR1 "$DISK_PID" 2>/dev/null; }
power_watch_install() { power_wait_for "$1" "^TRIAL: install begins" 1 && power_cut; }
# While the first image has been unpacked but perhaps not been written to the disk.
power_watch_images() { power_wait_for "$1" "^INSTALL: enabling dns.*pods\|^INSTALL: exit code" 1 && power_cut; }
power_watch_writes() { power_wait_for "$1" "ACK " "$SEEN" && power_cut; }
power_watch_snapshot() { power_wait_for "$1" "^SNAPSHOT .*;" 1 && power_cut; }

# power_summary PHASE CONSOLE'S-WORDS: of each boot the figures once more, for the end.
power_summary() {
    local found ready torn
    found=$(sed -n 's/^TRIAL: figure  \(acknowledged [0-9]*, found [0-9]*\):.*/\1/p' <<<"$2")
    ready=$(sed -n 's/^TRIAL: figure  \(Ready [0-9]* s after the boot\)/\1/p' <<<"$2")
    torn=$(sed -n 's/^TRIAL: figure  the store: //p' <<<"$2")
    [ -z "$found" ] || SUMMARY+=("boot $BOOTS: $found; ${ready:-installed again}; $torn")
}

# power_boot_once MEMORY PHASE LOST: one boot, which a cut ends but for the phase "end".
power_boot_once() {
    local folder=$WORK/trial console=$WORK/power.console watcher=power_watch_$2 status line lies=()
    printf '%s\n' "$2" >"$folder/phase"
    cp "$WORK/acknowledged" "$WORK/snapshot" "$folder/"
    tar -C "$folder" --owner=0 --group=0 -cf "$WORK/trial.tar" . || return
    [ "$2" != end ] || watcher=
    [ -z "${KEDGE_VM_LIES:-}" ] || [ "$2" != writes ] || lies=(--lies)
    rm -f "$WORK/disk.socket"
    python3 tests/machine/disk.py --image "$WORK/power.disk" --socket "$WORK/disk.socket" \
        --pidfile "$WORK/qemu.pid" --seed "$((SEED + BOOTS))" --lost "$3" "${lies[@]}" >"$WORK/disk.out" 2>&1 &
    DISK_PID=$!
    until [ -S "$WORK/disk.socket" ]; do
        kill -0 "$DISK_PID" 2>/dev/null || { cat "$WORK/disk.out"; return 1; }
        sleep 0.1
    done
    boot "file.driver=nbd,file.server.type=unix,file.server.path=$WORK/disk.socket,cache=writeback" "$1" "" \
        "$console" "$WORK/trial.tar" ${watcher:+"$watcher"}
    status=$?
    # It ends when qemu has, and then the disk is what it is after the cut.
    wait "$DISK_PID"
    DISK_PID=
    { echo "--- boot $BOOTS: $2"; cat "$console"; } >>"$DIR/$NAME-power.log"
    power_acknowledged "$console"
    line=$(tr -d '\r' <"$console")
    PASSED=$((PASSED + $(grep -c '^TRIAL: ok ' <<<"$line")))
    FAILED=$((FAILED + $(grep -c '^TRIAL: FAILED ' <<<"$line")))
    ! grep -q '^TRIAL: FAILED ' <<<"$line" || BAD=yes
    if [ "$(grep -c '^TRIAL: up after' <<<"$line")" != 1 ]; then
        echo "FAILED  power: the machine came up $(grep -c '^TRIAL: up after' <<<"$line") times in place of once; the end of its console:"
        tail -n 30 "$console"
        FAILED=$((FAILED + 1)) BAD=yes
    fi
    power_summary "$2" "$line"
    [ ! -s "$WORK/disk.out" ] || sed 's/^/figure  /' "$WORK/disk.out"
    ! grep -q '^TRIAL: installed' <<<"$line" || touch "$folder/installed"
    line=$(sed -n 's/^SNAPSHOT \(.*\);$/\1/p' <<<"$line" | tail -n 1)
    [ -z "$line" ] || echo "$line" >"$WORK/snapshot"
    case "$2 $status" in
        "end 0") grep -q '^TRIAL: done' "$console" || BAD=yes ;;
        install\ 137 | images\ 137) echo "figure  the installation was cut here: $(grep -a '^INSTALL' "$console" | tail -n 1 | tr -d '\r')" ;;
        *\ 137) echo "figure  acknowledged until the cut: $(tr '\n' ',' <"$WORK/acknowledged" | sed 's/,$//; s/,/, /g')" ;;
        *)
            echo "FAILED  power: boot $BOOTS ($2) did not come to its end; the end of its console:"
            tail -n 30 "$console"
            FAILED=$((FAILED + 1)) BAD=yes
            ;;
    esac
}

# power_trial MEMORY
power_trial() {
    local folder=$WORK/trial start=$SECONDS i phase lost phases=(images install)
    BOOTS=0 BAD='' SUMMARY=()
    if ! command -v python3 >/dev/null; then
        echo "skipped: power: there is no python3"
        SKIPPED=$((SKIPPED + 1))
        return
    fi
    [ -n "$SEED" ] || SEED=$(($(od -An -N2 -tu2 /dev/urandom)))
    RANDOM=$SEED
    for ((i = 1; i <= CUTS; i++)); do phases+=(writes); done
    phases+=(snapshot end)
    rm -rf "$folder" "$WORK"/power.* && mkdir -p "$folder"
    if ! { cp install.sh tests/machine/trial.sh tests/machine/power.sh "$folder/" && cp "$BINARY" "$folder/kedge" &&
        cp --sparse=always "$DISK" "$WORK/power.disk"; }; then
        FAILED=$((FAILED + 1))
        return
    fi
    echo power >"$folder/name"
    : >"$WORK/acknowledged"
    : >"$WORK/snapshot"
    : >"$DIR/$NAME-power.log"
    say "power: $1 MB, $HOW, --cuts $CUTS --seed $SEED; the consoles: $DIR/$NAME-power.log"
    for phase in "${phases[@]}"; do
        BOOTS=$((BOOTS + 1))
        SEEN=$((20 + RANDOM % 300)) lost=some
        AFTER=$((RANDOM % 8)).$((RANDOM % 10))
        # The worst and the most likely disk in turns.
        [ $((BOOTS % 3)) != 0 ] || lost=all
        case "$phase" in
            install)
                AFTER=$((2 + RANDOM % 60)).$((RANDOM % 10))
                say "power: boot $BOOTS, cut $AFTER s into the installation ($lost of what is not flushed is lost)" ;;
            images)
                AFTER=$((2 + RANDOM % 14)).$((RANDOM % 10))
                say "power: boot $BOOTS, cut $AFTER s after the first pod was there ($lost of what is not flushed is lost)" ;;
            writes) say "power: boot $BOOTS, cut $AFTER s after $SEEN acknowledged writes ($lost of what is not flushed is lost)" ;;
            snapshot)
                AFTER=0.$((RANDOM % 3))
                say "power: boot $BOOTS, cut $AFTER s after a snapshot ($lost of what is not flushed is lost)" ;;
            end) say "power: boot $BOOTS, the last" ;;
        esac
        power_boot_once "$1" "$phase" "$lost"
        [ -z "$BAD" ] || break
    done
    printf 'power: %s\n' "${SUMMARY[@]}"
    [ -z "$BAD" ] || echo "power: again with --cuts $CUTS --seed $SEED"
    say "power took $((SECONDS - start)) s"
}
