#!/usr/bin/env bash
# The whole suite against every pair of RabbitMQ and CouchDB that can be had here, and a table of what came of it. Arguments go to the promises'
# runner, as those of test.sh.
#
# An image that is neither here nor can be pulled is skipped, and said so; so is a second name of an image that had its turn. It ends with 0 when
# at least one pair was tried and none failed. One pair takes some minutes.
#
# Settings: MATRIX_RABBITMQ and MATRIX_COUCHDB, images separated by blanks; MATRIX_TEST, another command than docker/test.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"

# From the last series that Kazoo's clusters run to the newest there is.
read -ra brokers <<<"${MATRIX_RABBITMQ:-rabbitmq:3.13 rabbitmq:4.0 rabbitmq:4.1 rabbitmq:4.2 rabbitmq:4}"
read -ra databases <<<"${MATRIX_COUCHDB:-couchdb:3.3 couchdb:3.4 couchdb:3.5}"
suite="${MATRIX_TEST:-$REPO_DIR/docker/test.sh}"
LOGS="$STATE_DIR/matrix"
REACH_SECONDS=20
PULL_SECONDS=900

# Of an image that cannot be used, why; of one that can, which it is.
declare -A unusable id

# get IMAGE: sees to it that it is here.
get() {
    local image="$1" log="$LOGS/pull.log"
    if ! "$DOCKER" image inspect "$image" >/dev/null 2>&1; then
        say "asking for $image ..."
        if ! timeout "$REACH_SECONDS" "$DOCKER" manifest inspect "$image" >"$log" 2>&1 ||
            ! timeout "$PULL_SECONDS" "$DOCKER" pull -q "$image" >"$log" 2>&1; then
            unusable[$image]="cannot be pulled: $(tail -n 1 "$log" | sed 's/.*": //' | cut -c 1-100)"
            return 0
        fi
    fi
    id[$image]="$("$DOCKER" image inspect -f '{{.Id}}' "$image")"
    local other
    for other in "${!id[@]}"; do
        if [ "$other" != "$image" ] && [ "${id[$other]}" = "${id[$image]}" ]; then
            unset "id[$image]"
            unusable[$image]="is $other"
            return 0
        fi
    done
}

rows=()
tried=0
failed=0
# row BROKER DATABASE RESULT NOTE
row() { rows+=("$(printf '%-32s %-36s %-8s %s' "$@")"); }

try() {
    local broker="$1" database="$2" log began=$SECONDS result=passed
    shift 2
    log="$LOGS/${broker//[^A-Za-z0-9.-]/_}+${database//[^A-Za-z0-9.-]/_}.log"
    say "$broker with $database ..."
    RABBITMQ_IMAGE="$broker" COUCHDB_IMAGE="$database" "$suite" "$@" >"$log" 2>&1 || result=failed
    tried=$((tried + 1))
    if [ "$result" = failed ]; then
        failed=$((failed + 1))
        tail -n 15 "$log" | sed 's/^/docker:   | /' >&2
        row "$broker" "$database" FAILED "after $((SECONDS - began)) s: $log"
    else
        row "$broker" "$database" passed "in $((SECONDS - began)) s"
    fi
}

main() {
    local broker database
    "$REPO_DIR/docker/engine.sh"
    DOCKER="$(docker_command)"
    mkdir -p "$LOGS"
    for broker in "${brokers[@]}"; do get "$broker"; done
    for database in "${databases[@]}"; do get "$database"; done
    for broker in "${brokers[@]}"; do
        if [ -n "${unusable[$broker]:-}" ]; then
            row "$broker" "any" skipped "${unusable[$broker]}"
            continue
        fi
        for database in "${databases[@]}"; do
            if [ -z "${unusable[$database]:-}" ]; then try "$broker" "$database" "$@"; fi
        done
    done
    for database in "${databases[@]}"; do
        if [ -n "${unusable[$database]:-}" ]; then row "any" "$database" skipped "${unusable[$database]}"; fi
    done
    printf '\n'
    printf '%-32s %-36s %-8s %s\n' RABBITMQ COUCHDB RESULT ""
    printf '%s\n' "${rows[@]}"
    printf '\n%s pairs tried, %s failed\n' "$tried" "$failed"
    [ "$tried" -gt 0 ] || die "nothing was tried" "no pair of images is here or can be pulled; 'docker/images.sh --own' makes one"
    [ "$failed" = 0 ]
}

main "$@"
