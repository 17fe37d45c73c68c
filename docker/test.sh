#!/usr/bin/env bash
# The whole suite: `make test`. Arguments go to the promises' runner, such as the name of a test.
#
# Settings: TEST_AMQP_URI and TEST_COUCHDB_URL (use servers that run already), RABBITMQ_IMAGE and COUCHDB_IMAGE (see images.sh).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"
CARGO="${CARGO:-cargo}"
# Errors that are waited away need no stack each.
export RUST_LIB_BACKTRACE="${RUST_LIB_BACKTRACE:-0}"

# Some promises restart a broker or stop a database, which nobody may do to servers that were lent to us: those always use containers.
"$REPO_DIR/docker/engine.sh"
images="$("$REPO_DIR/docker/images.sh")"
eval "$images"
export RABBITMQ_IMAGE COUCHDB_IMAGE

say "building ..."
"$CARGO" build --locked --bins
say "unit tests, and the house ..."
"$CARGO" test --locked --lib --bins --test rooms --test dependencies --test keys --test headers --test documents --test schemas --test docs --test log_events --test language --test simulation
say "destinations, against a real database ..."
"$CARGO" test --locked --test destinations
say "promises, against real servers ..."
"$CARGO" test --locked --test promises -- "$@"
if [ $# -eq 0 ]; then
    say "sixty recordings while everything breaks ..."
    CHAOS_SEED=1 CHAOS_RECORDINGS=60 CHAOS_SECONDS=20 CHAOS_WORKERS=3 "$CARGO" test --locked --test chaos
    say "spans, to a collector in the test, with the feature that brings them there ..."
    "$CARGO" test --locked --features otlp --test promises -- the_spans_of_an_action_reach_the_collector
fi
