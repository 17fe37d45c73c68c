#!/usr/bin/env bash
# Recordings while everything breaks, from a seed; then an oracle judges: `make chaos`.
#
# Settings, all optional:
#   CHAOS_SEED          the plan; a random one is taken, and printed, when this is not set
#   CHAOS_RECORDINGS    how many are asked for (300)
#   CHAOS_SECONDS       within which their calls begin (a third of a second each)
#   CHAOS_WORKERS       workers (3)
#   CHAOS_PATIENCE_S    until everything must have ended (240)
#   CHAOS_UPGRADE_FROM  the program of an older version: the workers begin with it, and are replaced one after the other
#   CHAOS_DIR           where the plan, the workers' logs and the stories go; they stay when something is wrong
#   TEST_AMQP_URI, TEST_COUCHDB_URL   servers that run already: they are cut off, not stopped
#   RABBITMQ_IMAGE, COUCHDB_IMAGE     see images.sh
#
# The same seed and numbers give the same plan: what is printed at the beginning, and again when something is wrong, runs it once more.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"
case "${1:-}" in
-h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
CARGO="${CARGO:-cargo}"
export RUST_LIB_BACKTRACE="${RUST_LIB_BACKTRACE:-0}"
"$REPO_DIR/docker/engine.sh"
images="$("$REPO_DIR/docker/images.sh")"
eval "$images"
export RABBITMQ_IMAGE COUCHDB_IMAGE
say "building ..."
"$CARGO" build --locked --bins
"$CARGO" test --locked --test chaos
