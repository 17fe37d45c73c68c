#!/usr/bin/env bash
# `make bench`: measures workers under load, beside what this machine allows in the same run, and prints a table. docs/performance.md explains the
# rows. Removes its servers afterwards.
#
# Settings: BENCH_PARTS (such as actions,storm; default all), BENCH_SCALE (default 1), BENCH_OUT (the JSON; default target/bench.json), BENCH_LABEL (default
# the commit), BENCH_ARGS (more arguments of `kazoo-sim bench`), BENCH_PROFILE (default release), and those of services.sh. TEST_AMQP_URI and
# TEST_COUCHDB_URL use servers that run already: the broker must have no other clients. BENCH_RABBITMQ_PID and BENCH_COUCHDB_PID name the first
# process of such a server, whose CPU time is then reported. A variable such as KZ_RECORD_CALL__LEDGER__BUDGET_MS applies to the workers.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"
CARGO="${CARGO:-cargo}"
NAME=bench
PROFILE="${BENCH_PROFILE:-release}"
SCRATCH="$(mktemp -d)"

stop() {
    status=$?
    trap - EXIT INT TERM
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
export AMQP_URI COUCHDB_URL

# server_pid NAME PID URI: the first process of a server, if it is known.
server_pid() {
    local pid="$2" docker
    if [ -z "$pid" ] && [ -z "$3" ] && docker="$(docker_command)"; then
        pid="$("$docker" inspect -f '{{.State.Pid}}' "kz-$NAME-$1" 2>/dev/null)" || pid=""
    fi
    # A server in another machine's engine has a number that is another process's here, or none.
    if [ -n "$pid" ] && [ -z "${DOCKER_HOST:-}" ] && [ -d "/proc/$pid" ]; then printf -- '--%s-pid=%s\n' "$1" "$pid"; fi
}

folder="$PROFILE"
if [ "$PROFILE" = dev ]; then folder=debug; fi
target="${CARGO_TARGET_DIR:-target}"
out="${BENCH_OUT:-$target/bench.json}"
mkdir -p "$(dirname "$out")"
label="${BENCH_LABEL:-$(git rev-parse --short HEAD 2>/dev/null || true)}"
arguments=(--scale "${BENCH_SCALE:-1}" --json "$out" --label "$label" --scratch "$SCRATCH")
if [ -n "${BENCH_PARTS:-}" ]; then arguments+=(--parts "$BENCH_PARTS"); fi
mapfile -t pids < <(
    server_pid rabbitmq "${BENCH_RABBITMQ_PID:-}" "${TEST_AMQP_URI:-}"
    server_pid couchdb "${BENCH_COUCHDB_PID:-}" "${TEST_COUCHDB_URL:-}"
)
# shellcheck disable=SC2206  # one word per argument
more=(${BENCH_ARGS:-})
"$target/$folder/kazoo-sim" bench "${arguments[@]}" "${pids[@]}" "${more[@]}"
