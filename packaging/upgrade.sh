# shellcheck shell=sh
# What the Debian package and the snap do before another version runs on a node's data, in the way of
# `kedge install` (src/kedge/src/upgrade.rs): ask whether the cluster would stand still, save the cluster.
# The snap's hooks source this file; scripts/dist.sh puts it into the package's scripts, which run when no
# other file of the package is there.

complain() { printf 'kedge: %s\n' "$*" >&2; }

# Does systemd run the unit $1? Until the node is Ready it is "activating" only.
service_runs() {
    [ -d /run/systemd/system ] || return 1
    case "$(systemctl show --property ActiveState --value "$1")" in
        active | activating | reloading) return 0 ;;
        *) return 1 ;;
    esac
}

# The version of the program $1, as `kedge install` names snapshots after it.
version_of() { "$1" version --output yaml 2>/dev/null | sed -n 's/^version: "\{0,1\}\([^"]*\)"\{0,1\}$/\1/p'; }

# $1: the installed program; $2: a file that lets the upgrade go on all the same, once. Fails, with the
# reason and the remedy, when the upgrade must not happen. Otherwise:
#   FROM      the installed version
#   READY     "yes": the node is Ready with it; when it is not any more, that is the upgrade's doing
#   SNAPSHOT  the name of the saved cluster; empty: there is none
#   ALONE     "yes": no other node holds the data, so this one alone decides about them
before_upgrade() {
    FROM=$(version_of "$1") READY='' SNAPSHOT='' ALONE=''
    anyway='' refused='' state='' role='' section='' member='' votes='' dead=''
    members=0 voters=0 silent=0
    # Only a node that is not Ready makes this fail, and it prints all the same.
    status=$("$1" status --output yaml) || true
    while IFS= read -r line; do
        case "$line" in
            [a-zA-Z]*:*) section=${line%%:*} ;;
        esac
        case "$section:$line" in
            state:*) state=${line#*: } ;;
            "datastore:  role: "[a-z]*) role=${line#*: } ;;
            "datastore:  - name: "*) member=${line#*: } votes='' members=$((members + 1)) ;;
            "datastore:    role: voter") votes=yes voters=$((voters + 1)) ;;
            "datastore:    healthy: false")
                [ -z "$votes" ] || { dead="$dead${dead:+, }$member" silent=$((silent + 1)); }
                ;;
        esac
    done <<EOF
$status
EOF
    case "$state" in
        ready) READY=yes ;;
        stopped)
            complain "the node does not run: the cluster is not saved before this upgrade"
            return 0
            ;;
    esac
    [ "$members" -ge 2 ] || ALONE=yes
    if [ -e "$2" ]; then
        rm -f "$2" && anyway=yes && complain "$2 was there: the upgrade goes on whatever is wrong"
    fi

    # One node at a time: while a voter does not answer, the others are needed.
    case "$role" in
        leader | voter)
            if [ "$silent" -gt 0 ] && [ $((voters - silent - 1)) -lt $((voters / 2 + 1)) ]; then
                refused="$dead does not answer: without this node the cluster would stand still"
            fi
            ;;
    esac
    # A worker has no copy to save. Where the node is not Ready, the upgrade may be what mends it.
    if [ -n "$role" ] && { [ -z "$refused" ] || [ -n "$anyway" ]; }; then
        if reason=$("$1" snapshot save --replace --name "before-upgrade-from-$FROM" 2>&1); then
            SNAPSHOT=before-upgrade-from-$FROM
        elif [ -n "$READY" ] && [ -z "$anyway" ]; then
            refused="the cluster cannot be saved: $reason"
        else
            complain "the cluster was not saved before this upgrade: $reason"
        fi
    elif [ -z "$state" ]; then
        complain "the node does not answer: the cluster is not saved before this upgrade"
    fi
    [ -n "$refused" ] || return 0
    if [ -n "$anyway" ]; then
        complain "$refused"
        return 0
    fi
    complain "$refused"
    complain "nothing was changed, ${FROM:-the installed version} goes on"
    complain "remedy: mend that first (kedge status, kedge inspect); or touch $2, and try again: that once" \
        "the upgrade goes on all the same"
    return 1
}
