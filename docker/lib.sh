# shellcheck shell=bash
# Shared by the scripts of this folder; it is read by them (`source`), never run.
#
# Everything here speaks to people on stderr: stdout belongs to the script that reads this file, because some of them
# print assignments there.

# The folder of the repository, and where what is made at run time goes (never committed).
# shellcheck disable=SC2034  # read by the scripts that source this file
REPO_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
STATE_DIR="${KZ_STATE_DIR:-$REPO_DIR/target/docker}"

say() { printf 'docker: %s\n' "$*" >&2; }

# die "what failed" ["what to do about it" ...]
die() {
    say "FAILED: $1"
    shift
    local line
    for line in "$@"; do say "  $line"; done
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly, or by sudo where sudo asks nothing.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "this step needs root: $*" \
            "run this script as root, or allow sudo without a password for this user, or run that command yourself"
    fi
}

# quietly LOGNAME COMMAND...: keeps the command's output in a log and shows the end of it only when the command fails.
quietly() {
    local log="$STATE_DIR/$1.log"
    shift
    mkdir -p "$STATE_DIR"
    if "$@" >"$log" 2>&1; then
        return 0
    fi
    say "the command failed: $*"
    say "the last lines it said (all of it: $log):"
    tail -n 15 "$log" | sed 's/^/docker:   | /' >&2
    return 1
}

# Debian and Ubuntu only: installs packages that are missing, refreshing the package lists when they are old or absent.
apt_install() {
    have apt-get || die "cannot install $*: this is not Debian or Ubuntu (no apt-get)" \
        "install by hand what provides: $*"
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "installing ${missing[*]} ..."
    local install=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -q -y -o DPkg::Lock::Timeout=300
        install --no-install-recommends "${missing[@]}")
    if ! as_root "${install[@]}" >/dev/null 2>&1; then
        say "refreshing the package lists ..."
        quietly apt-update as_root apt-get -q -o DPkg::Lock::Timeout=300 update ||
            say "apt-get update failed; trying with the lists that are there"
        quietly apt-install as_root "${install[@]}" ||
            die "could not install ${missing[*]}" "see the lines above; 'apt-get install ${missing[*]}' by hand shows more"
    fi
}

# The docker command that reaches an engine: the one in PATH, else Debian's own. Two can be on one machine, and a client
# much newer than the engine refuses to talk to it.
docker_command() {
    local candidate
    for candidate in "${DOCKER:-docker}" /usr/bin/docker; do
        if have "$candidate" && "$candidate" info >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# One holder at a time (two `make test` at once must not both install the engine or build the image).
# The lock is the file descriptor 9 of the script; processes that outlive it must be started with 9>&-.
lock() {
    mkdir -p "$STATE_DIR"
    exec 9>"$STATE_DIR/$1.lock"
    flock -n 9 && return 0
    say "waiting for another run of $1 ..."
    flock -w 1800 9 || die "another run of $1 does not end" "look for it with: fuser $STATE_DIR/$1.lock"
}

# A free port below the range from which the kernel serves outgoing connections.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            printf '%s\n' "$port"
            return 0
        fi
    done
}
