#!/usr/bin/env bash
# A broker and a database for developing and testing: one pair of containers per name.
#
#     services.sh up [NAME]      starts what does not run yet, waits until both can be used, prints and writes the
#                                addresses (AMQP_URI, COUCHDB_URL) to target/services-NAME.env
#     services.sh down [NAME]    removes them, with their data and the file
#     services.sh status [NAME]  tells what runs (every pair when no name is given)
#
# NAME is `dev` by default. Ports are chosen once per container, on 127.0.0.1, and stay the same when the container is
# restarted, so a test may stop and start a server under its clients.
#
# Settings: SERVICES_ENV (the file to write), TEST_AMQP_URI and TEST_COUCHDB_URL (use that server instead of starting
# one), RABBITMQ_IMAGE and COUCHDB_IMAGE (see images.sh), COUCHDB_PASSWORD (default `secret`).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

LABEL=kz-record-call.services
COUCHDB_USER="admin"
COUCHDB_PASSWORD="${COUCHDB_PASSWORD:-secret}"
READY_SECONDS=120

# --- is it usable? --------------------------------------------------------------------------------------------------

# A broker is usable when it answers the greeting of AMQP 0-9-1: its listeners open last. Docker's proxy takes
# connections long before, so a connection alone says nothing.
amqp_answers() {
    local first
    first="$(
        exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" &&
            printf 'AMQP\0\0\11\1' >&3 &&
            timeout 2 head -c 1 <&3 | od -An -tu1
    )" || return 1
    [ "${first//[[:space:]]/}" = 1 ] # the frame type of Connection.Start
}

# http_status PORT METHOD PATH: the status of a request made as the administrator.
http_status() {
    local credentials line
    credentials="$(printf '%s:%s' "$COUCHDB_USER" "$COUCHDB_PASSWORD" | base64 -w 0)"
    line="$(
        exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" &&
            printf '%s %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' \
                "$2" "$3" "$credentials" >&3 &&
            timeout 5 head -n 1 <&3
    )" || return 1
    line="${line#HTTP/1.1 }"
    printf '%s\n' "${line%% *}"
}

couchdb_answers() { [ "$(http_status "$1" GET /_up)" = 200 ]; }

# wait_until CONTAINER COMMAND...: repeats the command; ends at once when the container has stopped.
wait_until() {
    local container="$1" deadline=$((SECONDS + READY_SECONDS))
    shift
    until "$@"; do
        if [ "$("$DOCKER" inspect -f '{{.State.Running}}' "$container" 2>/dev/null)" != true ] ||
            [ "$SECONDS" -ge "$deadline" ]; then
            say "the last lines of $container:"
            "$DOCKER" logs --tail 20 "$container" 2>&1 | sed 's/^/docker:   | /' >&2
            die "$container does not become usable" "see the lines above; 'docker/services.sh down $name' removes it"
        fi
        sleep 0.2
    done
}

# --- containers -----------------------------------------------------------------------------------------------------

# port_of CONTAINER INNER-PORT: also of a container that is stopped.
port_of() {
    "$DOCKER" inspect -f "{{(index (index .HostConfig.PortBindings \"$2/tcp\") 0).HostPort}}" "$1"
}

# ensure CONTAINER IMAGE INNER-PORT ARGUMENTS...: a running container of that image; one of an older image is replaced.
ensure() {
    local container="$1" image="$2" inner="$3" wanted has port="" output tries
    shift 3
    wanted="$("$DOCKER" image inspect -f '{{.Id}}' "$image")"
    has="$("$DOCKER" inspect -f '{{.Image}}' "$container" 2>/dev/null || true)"
    if [ -n "$has" ]; then
        if [ "$has" = "$wanted" ] && "$DOCKER" start "$container" >/dev/null 2>&1; then
            return 0
        fi
        port="$(port_of "$container" "$inner")" # its clients know it there
        "$DOCKER" rm -f -v "$container" >/dev/null
    fi
    for tries in 1 2 3 4 5 6 7 8 9 10; do
        [ -n "$port" ] || port="$(free_port)"
        if output="$("$DOCKER" run -d --name "$container" --label "$LABEL=$name" \
            -p "127.0.0.1:$port:$inner" "$@" "$image" 2>&1)"; then
            say "started $container ($image) on 127.0.0.1:$port"
            return 0
        fi
        "$DOCKER" rm -f -v "$container" >/dev/null 2>&1 || true
        case "$output" in
        *'port is already allocated'* | *'address already in use'*) port="" ;;
        *) break ;;
        esac
    done
    die "could not start $container (try $tries)" "$output"
}

containers() { "$DOCKER" ps -aq --filter "label=$LABEL${1:+=$1}"; }

# --- the commands ---------------------------------------------------------------------------------------------------

up() {
    local amqp="${TEST_AMQP_URI:-}" couchdb="${TEST_COUCHDB_URL:-}" port assignments
    if [ -z "$amqp" ] || [ -z "$couchdb" ]; then
        "$REPO_DIR/docker/engine.sh"
        DOCKER="$(docker_command)"
        assignments="$("$REPO_DIR/docker/images.sh")"
        eval "$assignments"
        lock "services-$name"
    fi
    # Both are started first, then waited for: they need their seconds side by side.
    if [ -z "$amqp" ]; then ensure "kz-$name-rabbitmq" "$RABBITMQ_IMAGE" 5672; fi
    if [ -z "$couchdb" ]; then
        ensure "kz-$name-couchdb" "$COUCHDB_IMAGE" 5984 \
            -e "COUCHDB_USER=$COUCHDB_USER" -e "COUCHDB_PASSWORD=$COUCHDB_PASSWORD"
        port="$(port_of "kz-$name-couchdb" 5984)"
        wait_until "kz-$name-couchdb" couchdb_answers "$port"
        # A fresh CouchDB complains in its log every few seconds until these exist; 412 says that they do.
        http_status "$port" PUT /_users >/dev/null || true
        http_status "$port" PUT /_replicator >/dev/null || true
        couchdb="http://$COUCHDB_USER:$COUCHDB_PASSWORD@127.0.0.1:$port"
    fi
    if [ -z "$amqp" ]; then
        port="$(port_of "kz-$name-rabbitmq" 5672)"
        wait_until "kz-$name-rabbitmq" amqp_answers "$port"
        amqp="amqp://guest:guest@127.0.0.1:$port/%2f"
    fi
    mkdir -p "$(dirname "$env_file")"
    printf 'AMQP_URI=%q\nCOUCHDB_URL=%q\n' "$amqp" "$couchdb" >"$env_file.new"
    mv "$env_file.new" "$env_file"
    cat "$env_file"
}

down() {
    local found
    rm -f "$env_file"
    DOCKER="$(docker_command)" || return 0 # no engine, so nothing runs
    found="$(containers "$name")"
    [ -n "$found" ] || return 0
    # shellcheck disable=SC2086  # one word per container
    "$DOCKER" rm -f -v $found >/dev/null
    say "removed the services of $name"
}

status() {
    DOCKER="$(docker_command)" || {
        say "no Docker engine answers (docker/engine.sh starts one)"
        return 0
    }
    "$DOCKER" ps -a --filter "label=$LABEL${1:+=$1}" --format 'table {{.Names}}\t{{.Status}}\t{{.Ports}}\t{{.Image}}'
}

command="${1:-}"
name="${2:-dev}"
[[ "$name" =~ ^[a-z0-9][a-z0-9_.-]*$ ]] || die "'$name' is no name for services" "use a-z, 0-9, '-'"
env_file="${SERVICES_ENV:-$REPO_DIR/target/services-$name.env}"

case "$command" in
up) up ;;
down) down ;;
status) status "${2:-}" ;;
*)
    printf 'usage: %s up|down|status [NAME]\n' "$0" >&2
    exit 64
    ;;
esac
