#!/bin/sh
# What scripts/vm.sh does in its virtual machine, as a unit of its systemd. Lines that begin with "TRIAL: "
# are for the reader of that script: "ok" and "FAILED" with seconds and a title, figures, and "done" last.
# /run/trial holds this script, install.sh, the binary, and the trial's name; it is there after each boot.
set -u
HERE=/run/trial STATE=/root/trial OUTPUT=/run/trial.out
TRIAL=$(cat $HERE/name)

tell() { echo "TRIAL: $*"; }
now() { cut -d. -f1 /proc/uptime; }

# check TITLE COMMAND...: one test. Its output is shown when it fails.
check() {
    title=$1 start=$(now)
    shift
    if "$@" >$OUTPUT 2>&1; then
        tell "ok $(($(now) - start)) s  $TRIAL: $title"
        return 0
    fi
    tell "FAILED $(($(now) - start)) s  $TRIAL: $title"
    tail -n 60 $OUTPUT | sed 's/^/TRIAL:     /'
    return 1
}

# until_true SECONDS COMMAND...: its last output is shown by check.
until_true() {
    end=$(($(now) + $1))
    shift
    until "$@" >/run/trial.try 2>&1; do
        [ "$(now)" -lt "$end" ] || { cat /run/trial.try; echo "not so in time: $*"; return 1; }
        sleep 1
    done
    cat /run/trial.try
}

finish() {
    tell "done"
    sync
    systemctl poweroff --force
    exit 0
}
give_up() {
    journalctl -u kedge --no-pager -n 40 | sed 's/^/TRIAL:     /'
    finish
}

kubectl() { command kubectl --kubeconfig $STATE/kubeconfig "$@"; }
equal() { [ "$1" = "$2" ] || { echo "$3: '$1' in place of '$2'"; return 1; }; }
holds() { case "$1" in *"$2"*) ;; *) echo "no '$2' in: $1"; return 1 ;; esac; }

# All that an uninstall or a refused install must leave as it was.
machine_state() {
    echo "processes:"
    ps -eo args= | grep -E 'kedge|containerd-shim|[/]pause' | grep -vE 'grep|/run/trial|kedge-vm'
    echo "mounts:"
    awk '{ print $2, $3 }' /proc/self/mounts | sort
    echo "devices:"
    ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/\1/'
    echo "routes and rules:"
    ip route
    ip rule
    ls -A /run/netns 2>/dev/null
    echo "nft:"
    nft list ruleset
    echo "cgroups:"
    find /sys/fs/cgroup -type d \( -name 'kubepods*' -o -name '*kedge*' \)
    echo "units:"
    systemctl list-unit-files --no-legend | grep -i kedge
    echo "files:"
    find / -xdev \( -path /proc -o -path /sys -o -path $STATE -o -path /var/log/journal -o -path /tmp \
        -o -path /var/lib/systemd -o -path /var/tmp -o -path /var/cache \) -prune -o -print | sort
    find /run \( -path /run/trial -o -path /run/systemd -o -path /run/udev -o -path /run/log \
        -o -path '/run/trial.*' -o -path /run/credentials \) -prune -o -print | sort
}

facts() {
    . /etc/os-release
    tell "machine: $PRETTY_NAME, Linux $(uname -r) $(uname -m), $(systemctl --version | sed -n '1s/ (.*//p')," \
        "$(containerd --version | awk '{ print $1, $3 }'), $(runc --version | head -n 1)"
    tell "machine: cgroup $(stat -fc %T /sys/fs/cgroup) with $(cat /sys/fs/cgroup/cgroup.controllers)," \
        "$(sed -n 's/MemTotal: *//p' /proc/meminfo) of memory, $(nproc) processors, pages of $(getconf PAGESIZE)," \
        "huge ones: $(sed 's/.*\[\(.*\)\].*/\1/' /sys/kernel/mm/transparent_hugepage/enabled)"
}

# figures WHEN: memory of each process, and what is left of the machine's.
figures() {
    for pid in $(pgrep -x 'kedge|containerd|pause|hello|dns'); do
        awk -v when="$1" -v what="$(tr '\0' ' ' <"/proc/$pid/cmdline" | sed 's|/usr/local/bin/||; s|/usr/bin/||' | cut -d' ' -f1-3)" '
            /^Rss:/ { all = $2 } /^Anonymous:/ { anon = $2 } /^AnonHugePages:/ { huge = $2 }
            END {
                printf "TRIAL: figure  %s: %s: %.1f MiB in memory, %.1f of it its own, %.1f of that in huge pages\n", \
                    when, what, all / 1024, anon / 1024, huge / 1024
            }' "/proc/$pid/smaps_rollup"
    done
    shims=$(for pid in $(pgrep -f containerd-shim-runc); do sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status"; done)
    tell "figure  $1: $(echo "$shims" | wc -w) shims with $(echo "$shims" | awk '{ all += $1 } END { printf "%.1f", all / 1024 }') MiB," \
        "$(awk '/^MemAvailable/ { printf "%.0f", $2 / 1024 }' /proc/meminfo) MiB of the machine are available"
}

# --- steps --------------------------------------------------------------------------------------

install_it() {
    cp $HERE/install.sh $HERE/kedge $STATE/ && cd $STATE && ./install.sh --timeout 1800 &&
        (umask 077 && kedge config >$STATE/kubeconfig)
}

node_tells_the_truth() {
    node=$(kubectl get nodes -o jsonpath='{range .items[*]}{.status.nodeInfo.architecture} {.status.nodeInfo.kernelVersion} {.status.nodeInfo.osImage}{end}')
    case "$(uname -m)" in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac
    . /etc/os-release
    equal "$node" "$architecture $(uname -r) $PRETTY_NAME" "the node's facts" || return
    kubectl get nodes -o wide
}

dns_runs() { kubectl -n kube-system rollout status deployment --timeout 900s "$(kubectl -n kube-system get deployment -l k8s-app=kube-dns -o name | sed 's|.*/||')"; }

hello_answers() {
    port=$(kubectl get service hello -o jsonpath='{.spec.ports[0].nodePort}') || return
    answer=$(curl -fsS --max-time 20 "http://10.0.2.15:$port/") || return
    holds "$answer" "$1"
}

tour() {
    kubectl create deployment hello --image=kedge.dev/hello:1.0 --replicas=2 &&
        kubectl rollout status deployment/hello --timeout 900s &&
        kubectl expose deployment hello --type=NodePort --port=80 --target-port=8080 &&
        until_true 120 hello_answers 1.0
}
update() {
    kubectl set image deployment/hello hello=kedge.dev/hello:2.0 &&
        kubectl rollout status deployment/hello --timeout 900s && until_true 120 hello_answers 2.0 &&
        kubectl rollout undo deployment/hello && kubectl rollout status deployment/hello --timeout 900s &&
        kubectl scale deployment/hello --replicas=3 && kubectl rollout status deployment/hello --timeout 900s
}
logs() { holds "$(kubectl logs deployment/hello)" 8080; }

# An image of the machine's busybox, which needs no C library.
busybox_image() {
    work=$STATE/image
    mkdir -p $work/root/bin $work/root/tmp || return
    cp "$(command -v busybox)" $work/root/bin/busybox
    for applet in sh sleep dd cat head tail wget nproc id hostname nslookup; do ln -sf busybox $work/root/bin/$applet; done
    tar -C $work/root --owner=0 --group=0 -cf $work/layer.tar . || return
    case "$(uname -m)" in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac
    printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        $architecture "$(sha256sum $work/layer.tar | cut -d' ' -f1)" >$work/config.json
    echo '[{"Config":"config.json","RepoTags":["docker.io/library/busybox:trial"],"Layers":["layer.tar"]}]' >$work/manifest.json
    tar -C $work -cf $STATE/busybox.tar manifest.json config.json layer.tar && rm -rf $work &&
        kedge images import $STATE/busybox.tar
}

# pod NAME RESOURCES COMMAND: one container of busybox.
pod() {
    kubectl apply -f - <<POD
apiVersion: v1
kind: Pod
metadata: { name: $1 }
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:trial
    imagePullPolicy: Never
    command: ["sh", "-c", "$3"]
    resources: $2
POD
}

exec_works() {
    kubectl wait --for=condition=Ready pod/limited --timeout 300s || return
    equal "$(kubectl exec limited -- sh -c 'echo $((6 * 7))')" 42 "exec's output" || return
    kubectl exec limited -- sh -c 'exit 3'
    equal $? 3 "exec's exit code" || return
    equal "$(echo words | kubectl exec -i limited -- cat)" words "what exec read"
}

# The files of the kernel say what the pod asked for: of the container, and of the pod's group above it.
limits_are_set() {
    id=$(kubectl get pod limited -o jsonpath='{.status.containerStatuses[0].containerID}')
    uid=$(kubectl get pod limited -o jsonpath='{.metadata.uid}')
    folder=$(find /sys/fs/cgroup/kubepods -type d -name "${id#containerd://}") above=${folder%/*}
    holds "$above" "/sys/fs/cgroup/kubepods/burstable/pod$uid" || return
    for want in memory.max=67108864 "cpu.max=25000 100000" memory.oom.group=1 memory.swap.max=0; do
        equal "$(cat "$folder/${want%%=*}")" "${want#*=}" "the container's ${want%%=*}" || return
    done
    for want in memory.max=67108864 "cpu.max=25000 100000" cpu.weight=4; do
        equal "$(cat "$above/${want%%=*}")" "${want#*=}" "the pod's ${want%%=*}" || return
    done
    grep . "$folder"/cpu.weight "$folder"/pids.max "$folder"/cpuset.cpus.effective
    # A group of its own: it sees itself as the root and its own limit.
    equal "$(kubectl exec limited -- cat /proc/self/cgroup)" 0::/ "the group as the container sees it" || return
    equal "$(kubectl exec limited -- cat /sys/fs/cgroup/memory.max)" 67108864 "the limit as the container sees it" || return
    classes=$(cd /sys/fs/cgroup/kubepods && grep -H . cpu.weight burstable/cpu.weight besteffort/cpu.weight)
    echo "$classes"
    equal "$(cat /sys/fs/cgroup/kubepods/besteffort/cpu.weight)" 1 "best effort's weight"
}

# systemd hands controllers out at the top; a reload must take none away from the pods.
reload_keeps_controllers() {
    before=$(cat /sys/fs/cgroup/kubepods/cgroup.controllers)
    holds "$before" memory || return
    systemctl daemon-reload && systemctl restart systemd-networkd.service
    sleep 2
    equal "$(cat /sys/fs/cgroup/kubepods/cgroup.controllers)" "$before" "controllers" && limits_are_set
}

pids_are_counted() { equal "$(kubectl exec limited -- cat /sys/fs/cgroup/pids.max)" max "pids.max without a limit"; }

# What the kernel says of it.
greedy_group() {
    folder=$(find /sys/fs/cgroup/kubepods -type d -name "*$(kubectl get pod greedy -o jsonpath='{.metadata.uid}')*")
    grep -r . "$folder" --include='memory.events*' --include=memory.current --include=memory.peak \
        --include=memory.max --include=memory.oom.group --include=cgroup.procs 2>/dev/null
    for pid in $(cat "$folder"/*/cgroup.procs); do ps -o pid,stat,rss,wchan:20,args -p "$pid"; done
    dmesg | tail -n 5
}

out_of_memory() {
    # Only the first program asks for too much; the group ends as a whole.
    pod greedy '{ limits: { memory: 24Mi } }' 'dd if=/dev/zero of=/dev/null bs=96M; sleep 100000' || return
    until_true 300 sh -c "[ \"\$(kubectl --kubeconfig $STATE/kubeconfig get pod greedy -o jsonpath='{.status.phase}')\" = Failed ]" ||
        { greedy_group; kubectl get pod greedy -o yaml | sed -n '/^status:/,$p'; return 1; }
    state=$(kubectl get pod greedy -o jsonpath='{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}')
    equal "$state" "OOMKilled 137" "the greedy pod's end" || return
    holds "$(kubectl get pod greedy)" OOMKilled || return
    kubectl delete pod greedy --now
}

throttled() {
    # A quarter of a processor: three seconds of the wall give less than one of it.
    folder=$(dirname "$(find /sys/fs/cgroup/kubepods -name "$(kubectl get pod limited -o jsonpath='{.status.containerStatuses[0].containerID}' | sed 's|.*//||')")/x")
    used() { sed -n 's/^usage_usec //p' "$folder/cpu.stat"; }
    before=$(used)
    timeout 6 kubectl --kubeconfig $STATE/kubeconfig exec limited -- sh -c 'while :; do :; done'
    share=$((($(used) - before) / 60000))
    echo "$share % of a processor"
    [ "$share" -le 40 ] && [ "$(sed -n 's/^nr_throttled //p' "$folder/cpu.stat")" -gt 0 ] && kubectl delete pod limited --now
}

# What was deleted has no process any more. When it has, the service's words on it are shown.
pods_that_are_gone_leave_nothing() {
    uids=$(kubectl get pods -A -o jsonpath='{range .items[*]}{.metadata.uid}{" "}{end}')
    for group in $(find /sys/fs/cgroup/kubepods -type d -name 'pod*' | sed 's|.*/pod||'); do
        holds " $uids " " $group " || return
    done
}
gone_is_gone() {
    until_true 60 pods_that_are_gone_leave_nothing && return
    ctr --address /run/kedge/containerd/containerd.sock --namespace k8s.io tasks list
    find /sys/fs/cgroup/kubepods -name cgroup.procs | while read -r file; do echo "$file: $(tr '\n' ' ' <"$file")"; done
    journalctl -u kedge --no-pager -n 40 | cut -c1-300
    return 1
}

metrics() {
    kedge enable metrics && until_true 300 kubectl top nodes && until_true 300 kubectl top pods &&
        holds "$(cat /run/trial.try)" hello
}

containers() {
    ctr --address /run/kedge/containerd/containerd.sock --namespace k8s.io tasks list |
        awk 'NR > 1 && $3 == "RUNNING" { print $1, $2 }' | sort
}
keeps_containers() {
    before=$(containers)
    [ -n "$before" ] || { echo "no container runs before"; return 1; }
    "$@" && kedge status --wait-ready --timeout 900 || return
    equal "$(containers)" "$before" "containers"
}
another_process() { pid=$(systemctl show -p MainPID --value kedge.service) && [ "$pid" != "$1" ] && [ "$pid" != 0 ]; }
killed() {
    pid=$(systemctl show -p MainPID --value kedge.service)
    kill -9 "$pid" && until_true 120 another_process "$pid"
}
all_stay_within_kubepods() {
    containers | while read -r id pid; do
        group=$(cat "/proc/$pid/cgroup")
        case "$group" in 0::/kubepods/*) ;; *) echo "$id is in $group"; return 1 ;; esac
    done
}

comes_back() {
    kedge status --wait-ready --timeout 1800 || return
    kubectl rollout status deployment/hello --timeout 900s && until_true 300 hello_answers 1.0
}

uninstall_it() {
    kedge uninstall --help >/dev/null
    kedge uninstall && rm -rf /root/.kube
}
as_before() {
    machine_state >/run/trial.after
    diff $STATE/before /run/trial.after
}

refuses() {
    cp $HERE/install.sh $HERE/kedge $STATE/ && cd $STATE || return
    ./install.sh
    equal $? 1 "install.sh's exit code" || return
    words=$(cat $OUTPUT)
    holds "$words" "memory cgroup controller is off" && holds "$words" cmdline.txt &&
        holds "$words" "cgroup_enable=memory" && holds "$words" "cgroup_memory=1"
}

# --- the trials ---------------------------------------------------------------------------------

first_boot=
[ -e $STATE ] || first_boot=yes
mkdir -p $STATE
swapoff -a
# The console's line may have begun with what systemd sends to a terminal.
echo
tell "up after $(now) s"
if [ -z "$first_boot" ] && [ ! -e $STATE/rebooting ] && [ "$TRIAL" != power ]; then
    tell "FAILED $(now) s  $TRIAL: the machine's kernel restarted by itself, see its console"
    finish
fi
if [ -n "$first_boot" ]; then
    facts
    # The list is made twice: making it may itself leave a trace.
    machine_state >/dev/null
    machine_state >$STATE/before
fi

case "$TRIAL" in
    tour)
        if [ -n "$first_boot" ]; then
            check "install.sh with a ready-made binary, to Ready" install_it || give_up
            figures "just Ready"
            check "kedge status" kedge status
            check "the node's facts" node_tells_the_truth
            check "dns runs" dns_runs
            check "the tour: a Deployment of 2, its NodePort answers" tour || give_up
            check "a rolling update, undo, scale" update
            check "logs" logs
            check "an image of busybox is imported" busybox_image
            check "a pod with limits is made" pod limited '{ requests: { cpu: 100m, memory: 32Mi }, limits: { cpu: 250m, memory: 64Mi } }' 'sleep 100000'
            check "exec" exec_works
            check "limits in the files of cgroup v2" limits_are_set
            check "a pod without a limit of processes" pids_are_counted
            check "systemd takes no controller away" reload_keeps_controllers
            check "out of memory is OOMKilled" out_of_memory
            check "the limit of cpu holds" throttled
            check "pods that are deleted leave no group" gone_is_gone
            check "metrics, kubectl top" metrics
            check "a restart of the unit keeps the containers" keeps_containers systemctl restart kedge.service
            check "kill -9 keeps the containers" keeps_containers killed
            check "all of them in groups of pods" all_stay_within_kubepods
            check "kedge stop and start keep the containers" keeps_containers sh -c 'kedge stop && kedge start'
            sleep 30
            figures "dns, metrics and 3 pods"
            tell "the machine reboots"
            touch $STATE/rebooting
            systemctl reboot
            exit 0
        fi
        check "a reboot brings everything back" comes_back || give_up
        check "kedge inspect finds nothing that fails" kedge inspect
        check "kedge uninstall" uninstall_it
        check "nothing is left" as_before
        ;;
    small)
        check "install.sh with a ready-made binary, to Ready" install_it || give_up
        figures "just Ready"
        check "dns runs" dns_runs
        check "the tour: a Deployment of 2, its NodePort answers" tour || give_up
        check "a rolling update, undo, scale" update
        check "kill -9 keeps the containers" keeps_containers killed
        before=$(containers)
        sleep 300
        check "five minutes later everything still runs" equal "$(containers)" "$before" "containers"
        check "and the node is Ready" kedge status --wait-ready --timeout 60
        check "nothing was stopped for lack of memory" sh -c '! dmesg | grep -i "out of memory"'
        figures "dns and 3 pods, five minutes on"
        ;;
    no-memory)
        check "install.sh refuses with the words for cmdline.txt" refuses
        sed 's/^/TRIAL:     /' $OUTPUT
        check "nothing was changed" as_before
        ;;
    power)
        . $HERE/power.sh
        power_boot
        ;;
esac
finish
