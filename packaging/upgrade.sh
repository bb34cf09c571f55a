# shellcheck shell=sh
# What the Debian package and the snap do before another version runs on a node's data, as `kedge install` does
# it: they ask the installed version whether the cluster would stand still, and it saves the cluster.
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

# $1: the installed program; $2: a file that lets the upgrade go on all the same, once. Fails when the upgrade
# must not happen; the program has said why, and what to do. Otherwise:
#   FROM      the installed version
#   READY     "yes": the node is Ready with it; when it is not any more, that is the upgrade's doing
#   SNAPSHOT  the name of the saved cluster; empty: there is none
#   ALONE     "yes": no other node holds the data, so this one alone decides about them
before_upgrade() {
    FROM=$(version_of "$1") READY='' SNAPSHOT='' ALONE=''
    status=0
    answer=$("$1" before-upgrade --anyway "$2") || status=$?
    if [ "$status" -eq 0 ]; then
        eval "$answer"
    elif [ -e "$2" ]; then
        # What cannot even be asked must not keep the way on.
        rm -f "$2"
    else
        # A program that does not know the question has not said it.
        [ "$status" -ne 2 ] || complain "to upgrade all the same, unsaved: touch $2, and try again"
        return 1
    fi
}
