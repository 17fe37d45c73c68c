#!/usr/bin/env bash
# Checks that a server answers as CouchDB 3.4 does:
#
#     check.sh        the stand-in of this folder, started for the occasion
#     check.sh URL    any server, e.g. http://admin:secret@127.0.0.1:5984 of a real CouchDB
#
# Databases named check... are made and removed there. Needs Node 18 or later; where there is none, the node of the stand-in's
# image is taken.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

HERE="$REPO_DIR/docker/couchdb-standin"

# Within the image: the same script's work, by the image's own node.
if ! have node || [ "$(node -p 'parseInt(process.versions.node)')" -lt 18 ]; then
    "$REPO_DIR/docker/engine.sh"
    assignments="$("$REPO_DIR/docker/images.sh" --own)"
    eval "$assignments"
    exec "$(docker_command)" run --rm --network host -v "$REPO_DIR/docker:/repo/docker:ro" "$COUCHDB_IMAGE" \
        /repo/docker/couchdb-standin/check.sh "$@"
fi

if [ $# -gt 0 ]; then
    COUCHDB_URL="$1"
else
    scratch="$(mktemp -d)"
    PORT=0 BIND=127.0.0.1 DATA_DIR="$scratch/data" COUCHDB_USER=admin COUCHDB_PASSWORD=secret \
        node "$HERE/server.mjs" >"$scratch/log" &
    server=$!
    trap 'kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT
    until grep -q 'has started on' "$scratch/log"; do
        kill -0 "$server" 2>/dev/null || die "the stand-in does not start" "$(cat "$scratch/log")"
        sleep 0.1
    done
    COUCHDB_URL="http://admin:secret@$(sed -n 's|.*has started on http://||p' "$scratch/log")"
fi
export COUCHDB_URL
cd "$HERE"
node --test check/
