#!/usr/bin/env bash
# Makes sure that the two images of the tests exist and prints their names, ready for `eval`:
#
#     RABBITMQ_IMAGE=...
#     COUCHDB_IMAGE=...
#
# RABBITMQ_IMAGE or COUCHDB_IMAGE set by the user is taken as it is (and pulled when it is not here yet). Unset, the
# official image is taken where it is here or can be pulled; where it cannot, an image of our own is made from Debian's
# packages: `kz-record-call/rabbitmq:local`, `kz-record-call/couchdb-standin:local`. A pull that failed is not
# tried again for a day: remove the file that the message names to try at once.
#
# RABBITMQ_RELEASE names the release of Debian whose RabbitMQ our own image has: bookworm (3.10, the default), trixie (4.0) or forky (4.3). The
# last two are made whatever else is here: `kz-record-call/rabbitmq-trixie:local`.
#
# Arguments: --own makes and names our own images, whatever else is here. Settings: KZ_PULL=never does not ask registries.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

HERE="$REPO_DIR/docker"
OFFICIAL_RABBITMQ=rabbitmq:3.13
OFFICIAL_COUCHDB=couchdb:3.4
OWN_BASE=kz-record-call/base:local
OWN_RABBITMQ=kz-record-call/rabbitmq:local
# Debian bookworm on purpose, whatever the host is: its RabbitMQ 3.10 and Node 18 are what the images were tried with.
SUITE=bookworm
PACKAGES=rabbitmq-server,nodejs
OWN_COUCHDB=kz-record-call/couchdb-standin:local
RECIPE_LABEL=kz-record-call.recipe
REACH_SECONDS=20
PULL_SECONDS=900

exists() { "$DOCKER" image inspect "$1" >/dev/null 2>&1; }

# --- images of others -----------------------------------------------------------------------------------------------

# The registry is asked for the description first, which takes a second or two where there is one to ask; only then does
# the download get the time it needs.
pull() {
    local image="$1" failed="$STATE_DIR/pull-failed.${1//[^A-Za-z0-9.-]/_}"
    if [ -n "$(find "$failed" -mmin -1440 2>/dev/null)" ]; then
        return 1
    fi
    say "asking for the image $image ..."
    if timeout "$REACH_SECONDS" "$DOCKER" manifest inspect "$image" >"$failed" 2>&1 &&
        say "pulling $image ..." && timeout "$PULL_SECONDS" "$DOCKER" pull -q "$image" >"$failed" 2>&1; then
        rm -f "$failed"
        return 0
    fi
    say "$image cannot be pulled here (not tried again for a day: $failed)"
    return 1
}

# --- images of our own ----------------------------------------------------------------------------------------------

# recipe FILE...: a hash over names and contents.
recipe() {
    (cd "$HERE" && sha256sum "$@") | sha256sum | cut -c 1-16
}

is_current() {
    [ "$("$DOCKER" image inspect -f "{{index .Config.Labels \"$RECIPE_LABEL\"}}" "$1" 2>/dev/null)" = "$2" ]
}

# base_recipe: a hash of all that decides what the base image has.
base_recipe() {
    { recipe base/make-root.sh; printf '%s\n' "$SUITE" "$PACKAGES"; } | sha256sum | cut -c 1-16
}

make_base() {
    local wanted started=$SECONDS
    wanted="$(base_recipe)"
    is_current "$OWN_BASE" "$wanted" && return 0
    if [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then apt_install debian-archive-keyring; fi
    have mmdebstrap || apt_install mmdebstrap
    say "making the base image from Debian's packages (a minute or so) ..."
    local log="$STATE_DIR/make-root.log"
    if ! as_root env \
        ${DEBIAN_MIRROR:+"DEBIAN_MIRROR=$DEBIAN_MIRROR"} \
        ${DEBIAN_SECURITY_MIRROR:+"DEBIAN_SECURITY_MIRROR=$DEBIAN_SECURITY_MIRROR"} \
        ${http_proxy:+"http_proxy=$http_proxy"} \
        "$HERE/base/make-root.sh" "$SUITE" "$PACKAGES" 2>"$log" |
        "$DOCKER" import -c "LABEL $RECIPE_LABEL=$wanted" -c 'CMD ["/bin/bash"]' - "$OWN_BASE" >/dev/null; then
        tail -n 15 "$log" | sed 's/^/docker:   | /' >&2
        # A broken root may have been imported all the same.
        "$DOCKER" image rm "$OWN_BASE" >/dev/null 2>&1 || true
        die "the base image could not be made" \
            "Debian's packages must be reachable; DEBIAN_MIRROR names another mirror; the whole log: $log"
    fi
    say "made $OWN_BASE in $((SECONDS - started)) s"
}

# place SOURCE DESTINATION MODE: one file into the tree that is laid over the base.
place() { install -D -m "$3" "$HERE/$1" "$tree$2"; }

# lay IMAGE CHANGE...: the base image with the files of `tree` over it, and what Dockerfiles call CMD, ENV, EXPOSE.
lay() {
    local image="$1" wanted change container changes=()
    shift
    wanted="$(
        base_recipe
        printf '%s\n' "$@"
        cd "$tree"
        find . -type f -printf '%p %m\n' | LC_ALL=C sort
        find . -type f | LC_ALL=C sort | xargs sha256sum
    )"
    wanted="$(printf '%s' "$wanted" | sha256sum | cut -c 1-16)"
    is_current "$image" "$wanted" && return 0
    make_base
    for change in "$@" "LABEL $RECIPE_LABEL=$wanted"; do changes+=(-c "$change"); done
    container="$("$DOCKER" create "$OWN_BASE")"
    if ! tar -C "$tree" --owner=0 --group=0 -cf - . | "$DOCKER" cp - "$container:/" ||
        ! "$DOCKER" commit "${changes[@]}" "$container" "$image" >/dev/null; then
        "$DOCKER" rm -f "$container" >/dev/null
        die "could not make $image" "see the line above; is there room on the disk? ('docker system df')"
    fi
    "$DOCKER" rm -f "$container" >/dev/null
    say "made $image"
}

make_rabbitmq() {
    place rabbitmq/start /usr/local/bin/start-rabbitmq 755
    place rabbitmq/rabbitmq-env.conf /etc/rabbitmq/rabbitmq-env.conf 644
    place rabbitmq/10-test.conf /etc/rabbitmq/conf.d/10-test.conf 644
    lay "$OWN_RABBITMQ" 'ENV LANG=C.UTF-8' 'EXPOSE 5672' 'CMD ["/usr/local/bin/start-rabbitmq"]'
}

make_couchdb() {
    local file
    for file in server.mjs package.json lib/; do
        find "$HERE/couchdb-standin/$file" -type f -printf '%P\n' | while read -r inner; do
            place "couchdb-standin/$file$inner" "/opt/couchdb-standin/$file$inner" 644
        done
    done
    lay "$OWN_COUCHDB" 'ENV DATA_DIR=/var/lib/couchdb-standin' 'EXPOSE 5984' \
        'CMD ["node", "/opt/couchdb-standin/server.mjs"]'
}

# --- the choice -----------------------------------------------------------------------------------------------------

# choose SETTING VALUE OFFICIAL OWN MAKE: prints the assignment.
choose() {
    local setting="$1" value="$2" official="$3" own="$4" make="$5" tree
    if [ -n "$value" ] && [ "$value" != "$own" ]; then
        if ! exists "$value"; then
            say "pulling $value ..."
            quietly "pull" timeout "$PULL_SECONDS" "$DOCKER" pull "$value" ||
                die "the image $setting=$value is not here and cannot be pulled" \
                    "unset $setting to have one made, or load the image with 'docker load'"
        fi
    elif [ -z "$value" ] && [ "$own_only" = no ] && { exists "$official" || { [ "${KZ_PULL:-}" != never ] && pull "$official"; }; }; then
        value="$official"
    else
        tree="$(mktemp -d)"
        chmod 755 "$tree" # it becomes the root of the image
        "$make"
        rm -rf "$tree"
        value="$own"
    fi
    printf '%s=%q\n' "$setting" "$value"
}

# choose_rabbitmq: as `choose`, or the broker of another release of Debian.
choose_rabbitmq() {
    local release="${RABBITMQ_RELEASE:-$SUITE}" image="${RABBITMQ_IMAGE:-}"
    case "$release" in
    "$SUITE")
        choose RABBITMQ_IMAGE "$image" "$OFFICIAL_RABBITMQ" "$OWN_RABBITMQ" make_rabbitmq
        return
        ;;
    trixie | forky) ;;
    *) die "RABBITMQ_RELEASE=$release is not known" "set bookworm, trixie or forky" ;;
    esac
    local SUITE="$release" PACKAGES=rabbitmq-server OWN_BASE="kz-record-call/base-$release:local"
    local OWN_RABBITMQ="kz-record-call/rabbitmq-$release:local"
    choose RABBITMQ_IMAGE "${image:-$OWN_RABBITMQ}" "" "$OWN_RABBITMQ" make_rabbitmq
}

main() {
    own_only=no
    case "${1:-}" in
    '') ;;
    --own) own_only=yes ;;
    *) die "unknown argument: $1" "see the head of docker/images.sh" ;;
    esac
    DOCKER="$(docker_command)" || die "no Docker engine answers" "run docker/engine.sh first"
    mkdir -p "$STATE_DIR"
    lock images
    choose_rabbitmq
    choose COUCHDB_IMAGE "${COUCHDB_IMAGE:-}" "$OFFICIAL_COUCHDB" "$OWN_COUCHDB" make_couchdb
}

main "$@"
