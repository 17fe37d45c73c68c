# shellcheck shell=sh
# What the scripts of both packages share: packaging/build.sh puts it in the place of their line @COMMON@.

systemd_runs() { [ -d /run/systemd/system ]; }

# The units are written for systemd 239 and newer. Enterprise Linux 7 has 219, which would read some lines wrongly.
adapt_to_systemd() {
    version="$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')"
    for unit in kz-record-call.service kz-record-call@.service; do
        folder="/etc/systemd/system/$unit.d"
        if [ -n "$version" ] && [ "$version" -lt 239 ]; then
            mkdir -p "$folder"
            cp /usr/share/kz-record-call/before-239.conf "$folder/before-239.conf"
        else
            forget_adaptation "$folder"
        fi
    done
    if systemd_runs; then systemctl daemon-reload || true; fi
}

forget_adaptation() {
    if [ -e "$1/before-239.conf" ]; then
        rm -f "$1/before-239.conf"
        rmdir "$1" 2>/dev/null || true
    fi
}

# Workers continue with the new program, one after the other, so that one is always bound: a restart is over when the worker is bound again.
# While the broker is down that would be never, so each restart is awaited for a minute at most; it continues all the same.
restart_workers() {
    systemd_runs || return 0
    for unit in $(systemctl list-units --plain --no-legend --state=active,activating 'kz-record-call.service' 'kz-record-call@*.service' | cut -d ' ' -f 1); do
        timeout 60 systemctl try-restart "$unit" || echo "kz-record-call: $unit is restarted, and not bound to its broker yet"
    done
}

# Recordings under way are finished by the other workers of the cluster, or by this host's when the package is installed again.
stop_workers() {
    if systemd_runs; then systemctl stop kz-record-call.service 'kz-record-call@*.service' || true; fi
}

# What is left after the files are gone.
clean_up() {
    forget_adaptation /etc/systemd/system/kz-record-call.service.d
    forget_adaptation /etc/systemd/system/kz-record-call@.service.d
    if systemd_runs; then systemctl daemon-reload || true; fi
}

# Links that `systemctl enable` made, and the spool: the spool has no file that is the only copy. The user stays, as it may own other files.
purge() {
    rm -f /etc/systemd/system/multi-user.target.wants/kz-record-call.service /etc/systemd/system/multi-user.target.wants/kz-record-call@*.service
    rm -rf /var/spool/kz-record-call
}

say_what_is_next() {
    cat <<'TEXT'
kz-record-call is installed, and does not run: it must be told the broker, the database and the cluster's secret first. Put them into
/etc/kz-record-call/config.toml (or into environment beside it), then: systemctl enable --now kz-record-call
TEXT
}
