#!/usr/bin/env bash
# Fuzzes what comes by the broker: `make fuzz`, or fuzz/run.sh [TARGET [LIBFUZZER-OPTION...]]. TARGET: messages, terms; both in turn by default.
# With --check the targets are only compiled, as far as it shows that they still can be.
#
# Settings: FUZZ_SECONDS (60) for each target, FUZZ_CORPUS (fuzz/corpus): inputs that reached something new are kept there.
#
# Needs a C++ compiler, and libfuzzer-sys from the registry; any toolchain, for LLVM's coverage pass is part of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v c++ >/dev/null || {
    echo "fuzz: a C++ compiler is missing, for libFuzzer itself: apt-get install g++" >&2
    exit 69
}
CARGO="${CARGO:-cargo}"
seconds="${FUZZ_SECONDS:-60}"
corpus="${FUZZ_CORPUS:-fuzz/corpus}"
target_dir="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
host="$(rustc -vV | sed -n 's/^host: //p')"

# The same versions as the program's, which cargo then adds what only fuzzing needs to.
cp Cargo.lock fuzz/Cargo.lock
if [ "${1:-}" = --check ]; then
    # As the program is checked, so that what is compiled is shared with that.
    exec "$CARGO" check --manifest-path fuzz/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-$PWD/target}"
fi
flags=(
    --cfg fuzzing -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
# --target: build scripts and macros are not instrumented.
RUSTFLAGS="${flags[*]}" "$CARGO" build --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$target_dir" || {
    echo "fuzz: it does not build; libfuzzer-sys and a C++ compiler are what only this needs" >&2
    exit 69
}

# What is true is where fuzzing starts: each fixture as it is (packed plainly, put nowhere), and its data in each place of a true message.
seed() {
    local into="$corpus/$1" file
    mkdir -p "$into" fuzz/artifacts
    cp -n fuzz/seeds/"$1"/* "$into"/
    [ "$1" = messages ] || return 0
    for file in tests/fixtures/*/*.json; do
        { printf '\0\0' && cat "$file"; } >"$into/$(basename "$file" .json)"
    done
}

run() {
    local name="$1" dictionary=()
    shift
    seed "$name"
    [ ! -f "fuzz/seeds/$name.dict" ] || dictionary=("-dict=fuzz/seeds/$name.dict")
    "$target_dir/$host/release/$name" "$corpus/$name" "${dictionary[@]}" -max_total_time="$seconds" -max_len=65536 \
        -rss_limit_mb=2048 -timeout=10 -artifact_prefix="fuzz/artifacts/$name-" -print_final_stats=1 "$@"
}

if [ $# -gt 0 ]; then
    run "$@"
else
    for name in messages terms; do run "$name"; done
fi
