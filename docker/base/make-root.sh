#!/usr/bin/env bash
# Writes to stdout, as a tar file, the root of a minimal Debian with what the test servers need:
#
#     make-root.sh SUITE PACKAGES
#
# Run by images.sh, which imports it as an image; the image is made again whenever this file changes.
#
# Settings: DEBIAN_MIRROR, DEBIAN_SECURITY_MIRROR (default: those of a Debian host, else deb.debian.org).
set -euo pipefail

SUITE="$1"
PACKAGES="$2"
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# The address from which the host gets Debian's own packages (label `Debian` or `Debian-Security`), if it does.
host_mirror() {
    # shellcheck disable=SC2016  # apt's own placeholders
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Label: $1" 2>/dev/null |
        grep '^http' | head -n 1 || true
}

mirror="${DEBIAN_MIRROR:-$(host_mirror Debian)}"
security="${DEBIAN_SECURITY_MIRROR:-$(host_mirror Debian-Security)}"

# The host's proxy for packages, if it has one, serves here too.
proxy="$(apt-config dump --format '%v' Acquire::http::Proxy 2>/dev/null || true)"

options=(
    --variant=minbase
    --include="$PACKAGES"
    --keyring="$KEYRING"
    # Mirrors that are frozen or behind, and machines whose clock is off, must not stop a test image.
    --aptopt='Acquire::Check-Valid-Until "false"'
    --aptopt='Acquire::Check-Date "false"'
    --aptopt='Acquire::Languages "none"'
    --aptopt='Acquire::Retries "3"'
    --aptopt='APT::Install-Recommends "false"'
    --dpkgopt='force-unsafe-io'
    --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-exclude=/usr/share/info/*'
    --dpkgopt='path-exclude=/usr/share/locale/*'
    --dpkgopt='path-exclude=/usr/share/man/*'
)
[ -z "$proxy" ] || options+=(--aptopt="Acquire::http::Proxy \"$proxy\"")

exec mmdebstrap "${options[@]}" "$SUITE" - \
    "deb ${mirror:-http://deb.debian.org/debian} $SUITE main" \
    "deb ${security:-http://deb.debian.org/debian-security} $SUITE-security main"
