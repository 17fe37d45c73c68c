#!/usr/bin/env bash
# Makes what the package has beside the program: manual pages, and completions for bash, zsh and fish, in packaging/generated. packaging/build.sh
# packages them.
#
#     packaging/generate.sh [PROGRAM]     PROGRAM: one that is built already; otherwise the release is built
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -gt 1 ]; then
    printf 'usage: %s [PROGRAM]\n' "$0" >&2
    exit 64
fi
program="${1:-}"
if [ -z "$program" ]; then
    "${CARGO:-cargo}" build --release --locked --bin kz-record-call
    program="${CARGO_TARGET_DIR:-target}/release/kz-record-call"
fi

out=packaging/generated
rm -rf "$out"
mkdir -p "$out/completions"
# A wrong configuration of whoever builds is nothing to it, and neither is a right one.
"$program" man --dir "$out/man"
"$program" completions bash >"$out/completions/kz-record-call.bash"
"$program" completions zsh >"$out/completions/_kz-record-call"
"$program" completions fish >"$out/completions/kz-record-call.fish"
printf 'generate: %s manual pages and completions for 3 shells are in %s\n' "$(find "$out/man" -name '*.1' | wc -l)" "$out"
