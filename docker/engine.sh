#!/usr/bin/env bash
# Makes sure that a Docker engine answers. Quick and silent when one does.
#
# Otherwise, on Debian and Ubuntu: installs the distribution's docker.io and starts it, by systemd where systemd runs,
# else as a background process whose log is $DOCKERD_LOG. What it started it leaves running.
#
# Settings: DOCKER (the docker command), DOCKER_HOST (an engine elsewhere: then nothing is installed or started here),
# DOCKERD_LOG (default /var/log/dockerd.log).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DOCKERD_LOG="${DOCKERD_LOG:-/var/log/dockerd.log}"
PIDFILE=/var/run/docker.pid
SOCKET=/var/run/docker.sock

answers() { docker_command >/dev/null; }

# An engine that runs but is not for this user looks like none: say so instead of starting a second one.
refuse_if_closed_to_us() {
    if [ -S "$SOCKET" ] && [ ! -w "$SOCKET" ]; then
        die "a Docker engine seems to run, but this user may not talk to it" \
            "add the user to its group (sudo usermod -aG docker $(id -un)) and log in again, or run this as root"
    fi
}

# wait_for_engine SECONDS [PID]: also ends early when the process given is gone.
wait_for_engine() {
    local deadline=$((SECONDS + $1)) pid="${2:-}"
    while ! answers; do
        refuse_if_closed_to_us
        [ "$SECONDS" -lt "$deadline" ] || return 1
        if [ -n "$pid" ] && [ ! -d "/proc/$pid" ]; then return 1; fi
        sleep 0.3
    done
}

systemd_runs() { [ -d /run/systemd/system ] && have systemctl; }

# The pid of a dockerd that already runs, if any.
running_dockerd() {
    local pid
    pid="$(cat "$PIDFILE" 2>/dev/null)" || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] && printf '%s\n' "$pid"
}

# start_dockerd PATH-PREFIX ARGUMENTS...: starts one and waits for it; false when it ended. It lives in a session of its
# own, so it survives this script and its terminal.
start_dockerd() {
    local first="$1"
    shift
    # shellcheck disable=SC2016  # expanded by the inner shell
    as_root env PATH="$first/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        setsid --fork sh -c 'log="$1"; shift; exec dockerd "$@" </dev/null >"$log" 2>&1 9>&-' \
        sh "$DOCKERD_LOG" "$@" 9>&-
    local pid="" deadline=$((SECONDS + 10))
    until pid="$(running_dockerd)"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
    wait_for_engine 60 "$pid"
}

# A directory in which `iptables` is the older variant, for kernels without nf_tables. The host's own choice stays.
legacy_iptables() {
    local dir=/run/kz-record-call-iptables name
    [ -x /usr/sbin/iptables-legacy ] || return 1
    as_root mkdir -p "$dir"
    for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
        as_root ln -sf "/usr/sbin/${name/tables/tables-legacy}" "$dir/$name"
    done
    printf '%s\n' "$dir"
}

start_without_systemd() {
    local pid legacy
    if pid="$(running_dockerd)"; then
        say "dockerd runs already (pid $pid), waiting for it ..."
        wait_for_engine 30 "$pid" && return 0
        die "dockerd runs (pid $pid) but does not answer" "its log may be $DOCKERD_LOG; stop it and run this again"
    fi
    say "starting dockerd (log: $DOCKERD_LOG) ..."
    start_dockerd "" && return 0
    if ! running_dockerd >/dev/null && grep -qi iptables "$DOCKERD_LOG" 2>/dev/null; then
        if legacy="$(legacy_iptables)"; then
            say "dockerd could not use iptables; trying the older variant ..."
            start_dockerd "$legacy:" && return 0
        fi
        # Without rules in the kernel published ports still work, through the engine's own proxy process. Containers
        # then cannot reach the outside, which none of ours does.
        say "dockerd could not use iptables at all; trying without ..."
        start_dockerd "" --iptables=false && return 0
    fi
    say "the last lines of $DOCKERD_LOG:"
    tail -n 15 "$DOCKERD_LOG" | sed 's/^/docker:   | /' >&2
    die "the Docker engine does not start here" \
        "it needs a real or virtual machine, or a privileged container, with /sys/fs/cgroup mounted" \
        "(package cgroupfs-mount mounts it), or set DOCKER_HOST to an engine elsewhere"
}

main() {
    answers && return 0

    if [ -n "${DOCKER_HOST:-}" ]; then
        die "the engine at DOCKER_HOST=$DOCKER_HOST does not answer" \
            "start it, or unset DOCKER_HOST to have one started on this machine"
    fi
    refuse_if_closed_to_us

    lock engine
    answers && return 0 # another run started it meanwhile

    # A client alone, of whatever vendor, is no engine: dockerd decides.
    if ! have dockerd && [ ! -x /usr/sbin/dockerd ]; then
        apt_install docker.io
    fi
    # Since Debian 13 the command is a package of its own.
    have docker || apt_install docker-cli

    if systemd_runs; then
        say "starting the service docker ..."
        quietly systemctl-docker as_root systemctl start docker ||
            die "the service docker does not start" "see: journalctl -u docker"
        wait_for_engine 60 || die "the service docker runs but the engine does not answer" "see: journalctl -u docker"
    else
        start_without_systemd
    fi
    say "the engine answers: Docker $("$(docker_command)" version --format '{{.Server.Version}}')"
}

main "$@"
