#!/usr/bin/env bash
# Makes a release: `make dist`. In target/dist are then the Debian package, the RPM, the tarball, the symbols, the SBOM and the checksums of all of them.
#
# The program runs on glibc 2.17 and newer: it is linked by zig, which has the symbols of every glibc. What this needs and is not here it fetches: zig and
# cargo-zigbuild from PyPI, and cargo-cyclonedx from crates.io, into target/dist-tools; on Debian and Ubuntu also packages, as root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export KZ_STATE_DIR="${CARGO_TARGET_DIR:-$PWD/target}/dist-logs"
# shellcheck source-path=SCRIPTDIR source=../docker/lib.sh
source docker/lib.sh

ZIG=0.17.1 ZIGBUILD=0.24.1 CYCLONEDX=0.5.9
GLIBC=2.17
CARGO="${CARGO:-cargo}"

target="${CARGO_TARGET_DIR:-$PWD/target}"
tools="$target/dist-tools" out="$target/dist"

case "$(uname -m)" in
x86_64) triple=x86_64-unknown-linux-gnu rpm_arch=x86_64 ;;
aarch64) triple=aarch64-unknown-linux-gnu rpm_arch=aarch64 ;;
*) die "releases are made on x86_64 and aarch64 only" ;;
esac

# --- tools ----------------------------------------------------------------------------------------------------------

declare -A package=([rpmbuild]=rpm [readelf]=binutils [objcopy]=binutils [dpkg-deb]=dpkg [python3]=python3 [jq]=jq [xz]=xz-utils)
missing=()
for tool in "${!package[@]}"; do have "$tool" || missing+=("${package[$tool]}"); done
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then apt_install "${missing[@]}"; fi
if [ "$("$tools/bin/pip" freeze 2>/dev/null | grep -cxE "ziglang==$ZIG|cargo-zigbuild==$ZIGBUILD")" != 2 ]; then
    say "installing zig $ZIG and cargo-zigbuild $ZIGBUILD into $tools ..."
    quietly venv python3 -m venv "$tools"
    quietly pip "$tools/bin/pip" install "ziglang==$ZIG" "cargo-zigbuild==$ZIGBUILD"
fi
if [ "$("$tools/bin/cargo-cyclonedx" --version 2>/dev/null)" != "cargo-cyclonedx-cyclonedx $CYCLONEDX" ]; then
    say "installing cargo-cyclonedx $CYCLONEDX into $tools ..."
    quietly cyclonedx "$CARGO" install --quiet --locked --root "$tools" --target-dir "$tools/build" "cargo-cyclonedx@$CYCLONEDX"
    rm -rf "$tools/build"
fi

# --- the program ----------------------------------------------------------------------------------------------------

say "building the release for glibc $GLIBC ..."
PATH="$tools/bin:$PATH" "$CARGO" zigbuild --release --locked --bin kz-record-call --target "$triple.$GLIBC"
built="$target/$triple/release/kz-record-call"
rm -rf "$out"
mkdir -p "$out" "$target/dist-program"
version="$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)"
program="$target/dist-program/kz-record-call" symbols="$out/kz-record-call-$version-linux-$rpm_arch.debug"
# Line numbers are four fifths of what is built. The names of functions stay in the program, for backtraces.
objcopy --only-keep-debug --compress-debug-sections=zlib "$built" "$symbols"
objcopy --strip-debug --add-gnu-debuglink="$symbols" "$built" "$program"
chmod 644 "$symbols"

# --- what is published ----------------------------------------------------------------------------------------------

packaging/generate.sh "$program"
packaging/build.sh "$program" --out "$out"
say "listing the crates (SBOM) ..."
PATH="$tools/bin:$PATH" quietly sbom "$CARGO" cyclonedx --format json --spec-version 1.5 --target "$triple" --no-build-deps --override-filename kz-record-call
# The builder's folder means nothing to the reader.
sed "s|file://$PWD|file://.|g" kz-record-call.json >"$out/kz-record-call-$version.cdx.json"
rm kz-record-call.json
cp CHANGELOG.md "$out/CHANGELOG.md"
(cd "$out" && sha256sum -- * >../SHA256SUMS && mv ../SHA256SUMS SHA256SUMS)
packaging/check.sh --dist "$out"
say "the release $version is in $out"
