#!/usr/bin/env bash
# `make load`: how many actions one worker answers in a second on this machine, with a broker and a database beside it; and how many a loop
# does that only answers. Takes its servers away again.
#
# Settings: LOAD_ACTIONS (default 5000), LOAD_PROFILE (default release), and those of services.sh: TEST_AMQP_URI and TEST_COUCHDB_URL use
# servers that run already; their broker must be nobody else's, and the ledger of the run stays there (databases that begin with load-).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"
CARGO="${CARGO:-cargo}"
NAME=load
PROFILE="${LOAD_PROFILE:-release}"
ACTIONS="${LOAD_ACTIONS:-5000}"
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
    rm -rf "$SCRATCH"
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -z "${TEST_AMQP_URI:-}" ] || [ -z "${TEST_COUCHDB_URL:-}" ]; then docker/engine.sh; fi
say "building (the first time takes some minutes) ..."
"$CARGO" build --locked --bins --profile "$PROFILE"
SERVICES_ENV="$SCRATCH/services.env" docker/services.sh up "$NAME" >/dev/null
# shellcheck disable=SC1091
source "$SCRATCH/services.env"

folder="$PROFILE"
if [ "$PROFILE" = dev ]; then folder=debug; fi
target="${CARGO_TARGET_DIR:-target}/$folder"
load() { "$target/kazoo-sim" load --amqp-uri "$AMQP_URI" --actions "$ACTIONS" "$@"; }

say "what the broker and this machine allow ..."
load --bare
say "starting the worker ..."
ingest="$(free_port)"
export KZ_RECORD_CALL__AMQP__URI="$AMQP_URI"
export KZ_RECORD_CALL__COUCHDB__URL="$COUCHDB_URL"
export KZ_RECORD_CALL__COUCHDB__DATABASE_PREFIX="load-"
export KZ_RECORD_CALL__INGEST__LISTEN="127.0.0.1:$ingest"
export KZ_RECORD_CALL__INGEST__ADVERTISED_URL="http://127.0.0.1:$ingest"
KZ_RECORD_CALL__ADMIN__LISTEN="127.0.0.1:$(free_port)"
export KZ_RECORD_CALL__ADMIN__LISTEN
export KZ_RECORD_CALL__SPOOL__DIR="$SCRATCH/spool"
export KZ_RECORD_CALL__KAZOO__CONFIG_FILE=none
export KZ_RECORD_CALL__SECRET="only good for the load"
export KZ_RECORD_CALL__LOG__LEVEL=error
"$target/kz-record-call" run >"$SCRATCH/worker.log" 2>&1 &
WORKER=$!
ready() { "$target/kz-record-call" healthcheck >/dev/null 2>&1; }
for _ in $(seq 150); do
    if ready; then break; fi
    sleep 0.2
done
ready || die "the worker does not become ready" "its log follows"
load
load --window 200
ACTIONS=$((ACTIONS / 5))
load --window 1
