# shellcheck shell=sh
# What the trial "power" does in the machine, part of trial.sh; scripts/vm-power.sh cuts the power. Each
# boot is told what it is for by the file phase, and by the file acknowledged what must be there: a line for
# each writer with the last number that the console showed.
#
# "ACK WRITER NUMBER;" on the console: the API's answer came, and with it those to all lower numbers. A writer
# makes one request after the other, so what it made has no gaps, and at most one that was not answered.

WRITERS="small medium large counter"
# None of it is on the disk: nothing here should make it flush.
PKI=/run/trial.pki
SERVER=https://127.0.0.1:6443
MAPS=$SERVER/api/v1/namespaces/power/configmaps

# The administrator's certificate, for curl, which is much faster than kubectl on an emulated processor.
credentials() {
    mkdir -p $PKI && (umask 077 && kedge config >$STATE/kubeconfig) || return
    for key in certificate-authority-data:ca client-certificate-data:cert client-key-data:key; do
        sed -n "s/^ *${key%%:*}: *//p" $STATE/kubeconfig | base64 -d >$PKI/${key##*:}.pem || return
        [ -s $PKI/${key##*:}.pem ] || { echo "no ${key%%:*} in the kubeconfig"; return 1; }
    done
}
api() { curl -sS --max-time 120 --cacert $PKI/ca.pem --cert $PKI/cert.pem --key $PKI/key.pem "$@"; }

# requests WRITER FROM: many of them for curl, over one connection. Frames of the store's log from less
# than a sector to more than the 256 KiB that go past the page cache.
requests() {
    awk -v writer="$1" -v from="$2" -v maps=$MAPS -v pki=$PKI '
        function padding(length_, text) {
            text = "x"
            while (length(text) < length_) text = text text
            return substr(text, 1, length_)
        }
        BEGIN {
            many = padding(300000)
            end = from + (writer == "medium" ? 200 : writer == "large" ? 60 : 400)
            for (n = from; n < end; n++) {
                length_ = writer == "medium" ? 500 + (n * 7919) % 30000 : writer == "large" && n % 3 == 0 ? 300000 : 20
                if (n > from) print "next"
                printf "fail\ncacert = %s/ca.pem\ncert = %s/cert.pem\nkey = %s/key.pem\nmax-time = 120\nsilent\n", pki, pki, pki
                printf "output = /dev/null\nwrite-out = \"%%{stderr}%%{http_code} %d\\n\"\n", n
                if (writer == "counter") {
                    printf "url = %s/counter\nrequest = PATCH\nheader = \"Content-Type: application/merge-patch+json\"\n", maps
                    printf "data = \"{\\\"data\\\":{\\\"n\\\":\\\"%d\\\"}}\"\n", n
                } else {
                    printf "url = %s\nheader = \"Content-Type: application/json\"\n", maps
                    print "data = \"{\\\"metadata\\\":{\\\"name\\\":\\\"" writer "-" n "\\\"},\\\"data\\\":{\\\"padding\\\":\\\"" \
                        substr(many, 1, length_) "\\\"}}\""
                }
            }
        }'
}

# writer NAME FROM: writes until the power is gone.
writer() {
    next=$2 failures=0
    while [ $failures -lt 20 ]; do
        requests "$1" "$next" >/run/trial.$1.requests
        curl --fail-early -K /run/trial.$1.requests 2>&1 >/dev/null | {
            while read -r code number; do
                case "$code" in
                    200 | 201) echo "ACK $1 $number;" && echo $((number + 1)) >/run/trial.$1.next ;;
                    # It was made although its answer did not come.
                    409) echo $((number + 1)) >/run/trial.$1.next ;;
                    *) echo "writer $1: $code $number" ;;
                esac
            done
        }
        before=$next next=$(cat /run/trial.$1.next 2>/dev/null || echo "$next")
        if [ "$next" = "$before" ]; then
            failures=$((failures + 1))
            sleep 2
        else
            failures=0
        fi
    done
    tell "FAILED $(now) s  $TRIAL: writer $1 gets no further than $next"
}

# found WRITER: the highest number that is there. All below it must be, too.
found() {
    if [ "$1" = counter ]; then
        api -f $MAPS/counter | sed 's/.*"n":"\([0-9]*\)".*/\1/'
        return
    fi
    tr ',' '\n' </run/trial.list | sed -n "s/.*\"name\":\"$1-\([0-9]*\)\".*/\1/p" | sort -n |
        awk '$1 != NR { print "missing:" NR; exit 1 } { last = $1 } END { print last + 0 }'
}

all_is_there() {
    api -f -H 'Accept: application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io' $MAPS >/run/trial.list || return
    words='' bad=0 acknowledged=0 all=0
    for writer in $WRITERS; do
        want=$(sed -n "s/^$writer //p" $HERE/acknowledged)
        have=$(found "$writer") || bad=1
        words="$words, $writer ${want:-0}/$have"
        case "$have" in '' | *[!0-9]*) have=0 bad=1 ;; esac
        [ "$have" -ge "${want:-0}" ] || bad=1
        acknowledged=$((acknowledged + ${want:-0})) all=$((all + have))
        echo $((have + 1)) >/run/trial.$writer.next
    done
    echo "acknowledged $acknowledged, found $all:${words#,}" >/run/trial.found
    # Names alone prove little: some of them with what is in them.
    for writer in medium large; do
        last=$(($(cat /run/trial.$writer.next) - 1))
        for number in $last $((last - last % 3)) $((last / 2)); do
            [ "$number" -gt 0 ] || continue
            case "$writer" in
                medium) length=$((500 + (number * 7919) % 30000)) ;;
                large) length=20 && [ $((number % 3)) != 0 ] || length=300000 ;;
            esac
            got=$(api -f "$MAPS/$writer-$number" | sed 's/.*"padding":"\(x*\)".*/\1/' | tr -d '\n' | wc -c)
            equal "$got" "$length" "bytes in $writer-$number" || bad=1
        done
    done
    [ $bad = 0 ] || echo "not all is there:$words"
    return $bad
}

make_what_is_written() {
    kubectl create namespace power && kubectl -n power create configmap counter --from-literal=n=0
}

# What Kedge said in this boot, but for what is said each time.
words_of_the_start() {
    journalctl -b -u kedge --no-pager -o cat | sed 's/\x1b\[[0-9;]*m//g' | grep -E 'WARN|ERROR|torn|set aside|rebuilt' |
        cut -c1-300 | head -n 12 | sed 's/^/TRIAL:     /'
    tell "figure  the store: $(journalctl -b -u kedge --no-pager -o cat | grep -c "record is torn") torn tails cut off," \
        "$(find /var/lib/kedge -name '*.log' -path '*wal*' | wc -l) segments, $(find /var/lib/kedge -name '*.snap' | wc -l) snapshots," \
        "$(find /var/lib/kedge -maxdepth 3 -name 'engine.bad' | wc -l) engines set aside"
}

# Were the disk itself no disk, Kedge would not be to blame.
no_file_system_errors() { ! dmesg | grep -iE 'EXT4-fs (error|warning)|I/O error'; }

snapshot_is_whole() {
    [ ! -s $HERE/snapshot ] || kedge snapshot verify "$(cat $HERE/snapshot)"
}

# Why they do not run.
pods_say() {
    { kubectl get pods -A -o wide; kubectl get events -A | tail -n 30; journalctl -b -p warning --no-pager | tail -n 30; } 2>&1 |
        cut -c1-400 | sed 's/^/TRIAL:     /'
    give_up
}

# The installation's words go to the console, which remembers where it was cut.
power_install() {
    tell "install begins"
    (install_it 2>&1; echo "exit code $?") | while read -r line; do echo "INSTALL: $line"; done
    tell "install ended"
}

power_boot() {
    phase=$(cat $HERE/phase)
    if [ "$phase" = install ] || [ "$phase" = images ]; then
        power_install
        sleep 600
        finish
    fi
    if [ ! -e $HERE/installed ]; then
        # It may be there in part, or run already.
        check "after the cut in its midst, install.sh again, to Ready" install_it || give_up
        check "the tour: a Deployment of 2, its NodePort answers" tour || pods_say
        check "a namespace to write to" make_what_is_written || give_up
        tell "installed"
    else
        check "the unit starts Kedge, to Ready" kedge status --wait-ready --timeout 1800 || { words_of_the_start; give_up; }
        tell "figure  Ready $(now) s after the boot"
    fi
    words_of_the_start
    check "credentials" credentials || give_up
    check "what was acknowledged is there" all_is_there || { keep_going=no; }
    tell "figure  $(cat /run/trial.found)"
    check "the file system has no errors" no_file_system_errors
    [ -z "${keep_going:-}" ] || give_up
    check "the snapshot is whole" snapshot_is_whole
    check "kedge status" kedge status
    check "the pods run and answer" comes_back || pods_say
    tell "figure  the pods answer $(now) s after the boot"
    if [ "$phase" = end ]; then
        check "kedge inspect finds nothing that fails" kedge inspect
        finish
    fi
    tell "writes begin"
    for writer in $WRITERS; do writer "$writer" "$(cat /run/trial.$writer.next)" & done
    if [ "$phase" = snapshot ]; then
        sleep 10
        name=trial-$(cut -d- -f1 /proc/sys/kernel/random/uuid)
        kedge snapshot save --name "$name" && echo "SNAPSHOT $name;"
    fi
    sleep 3600
    finish
}
