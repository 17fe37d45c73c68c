#!/usr/bin/env bash
# `make demo`: RabbitMQ, CouchDB, a worker and a simulated Kazoo; records calls through the whole way, shows what was stored and where,
# and stops everything that it started.
#
# Settings: DEMO_PROFILE (default dev): release is what is packaged, and takes minutes longer to build.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"
CARGO="${CARGO:-cargo}"
NAME=demo
PROFILE="${DEMO_PROFILE:-dev}"
SCRATCH="$(mktemp -d)"
WORKER=""

stop() {
    status=$?
    trap - EXIT INT TERM
    if [ -n "$WORKER" ] && kill -TERM "$WORKER" 2>/dev/null; then
        wait "$WORKER" || true
    fi
    if [ "$status" -ne 0 ] && [ -s "$SCRATCH/worker.log" ]; then
        say "the last lines of the worker's log:"
        tail -n 20 "$SCRATCH/worker.log" >&2
    fi
    docker/services.sh down "$NAME" >/dev/null 2>&1 || true
    docker/services.sh down "$NAME-third" >/dev/null 2>&1 || true
    rm -rf "$SCRATCH"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

docker/engine.sh
say "building (the first time takes some minutes) ..."
"$CARGO" build --locked --bins --profile "$PROFILE"
SERVICES_ENV="$SCRATCH/services.env" docker/services.sh up "$NAME" >/dev/null
# shellcheck disable=SC1091
source "$SCRATCH/services.env"
# A third party's database, beside the same broker.
TEST_AMQP_URI="$AMQP_URI" SERVICES_ENV="$SCRATCH/third.env" docker/services.sh up "$NAME-third" >/dev/null
THIRD_PARTY_URL="$(
    # shellcheck disable=SC1091
    source "$SCRATCH/third.env"
    printf '%s' "$COUCHDB_URL"
)"
export THIRD_PARTY_URL

folder="$PROFILE"
if [ "$PROFILE" = dev ]; then folder=debug; fi
target="${CARGO_TARGET_DIR:-target}/$folder"
ingest="$(free_port)"
admin="$(free_port)"
say "starting the worker ..."
export KZ_RECORD_CALL__AMQP__URI="$AMQP_URI" \
    KZ_RECORD_CALL__COUCHDB__URL="$COUCHDB_URL" \
    KZ_RECORD_CALL__INGEST__LISTEN="127.0.0.1:$ingest" \
    KZ_RECORD_CALL__INGEST__ADVERTISED_URL="http://127.0.0.1:$ingest" \
    KZ_RECORD_CALL__ADMIN__LISTEN="127.0.0.1:$admin" \
    KZ_RECORD_CALL__SPOOL__DIR="$SCRATCH/spool" \
    KZ_RECORD_CALL__KAZOO__CONFIG_FILE=none \
    KZ_RECORD_CALL__KAZOO__CONFIG_POLL_S=1 \
    KZ_RECORD_CALL__DESTINATION__ALLOW="127.0.0.1" \
    KZ_RECORD_CALL__SECRET="only good for the demo"
"$target/kz-record-call" run >"$SCRATCH/worker.log" 2>&1 &
WORKER=$!

"$target/kazoo-sim" demo --amqp-uri "$AMQP_URI" --couchdb-url "$COUCHDB_URL" --worker-admin-url "http://127.0.0.1:$admin"

say "stopping the worker; what the ledger tells without it, kz-record-call list, and explain of the first recording:"
kill -TERM "$WORKER"
wait "$WORKER"
WORKER=""
"$target/kz-record-call" list
# Newest first.
"$target/kz-record-call" explain "$("$target/kz-record-call" list --json | sed -n 's/.*"media_id": *"\([^"]*\)".*/\1/p' | tail -n 1)"

say "all of it was recorded, kept and told; everything that was started is stopped and removed now."
say "docs/first-recording.md goes on from here."
