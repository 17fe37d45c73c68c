#!/usr/bin/env bash
# Checks what is packaged: that the alerts are right and their tests pass, that every expression of the dashboard can be read, that every metric that
# is named exists, every runbook is written, the units agree, the scripts are clean, and both packages have the files, owners, permissions and scripts
# that they should have. Needs no build and no engine: a small program of this host is packaged in the place of the worker.
#
#     packaging/check.sh [--install | --lenient]
#     packaging/check.sh --dist FOLDER     checks what `make dist` made instead, and runs the program in it
#
# It needs promtool (Debian: prometheus), jq, shellcheck, systemd-analyze (systemd), rpmbuild and rpm (rpm), objdump and readelf (binutils), and xz
# (xz-utils); one that is missing is a failure. With --install they are installed from Debian's packages first; with --lenient what a missing tool would have checked is
# skipped, with a line that says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ALERTS=packaging/prometheus/alerts.yml
TESTS=packaging/prometheus/alerts_test.yml
DASHBOARD=packaging/grafana/kz-record-call.json
RUNBOOKS=docs/when-it-goes-wrong.md
UNIT=packaging/systemd/kz-record-call.service
TEMPLATE=packaging/systemd/kz-record-call@.service

# Metrics that alerts are written for and that workers do not have yet: those alerts do not fire. Take the name away when the metric is there.
AWAITED=""

# The oldest glibc on which a program of `make dist` runs: Enterprise Linux 7. And how large the program may be, in bytes.
OLDEST_GLIBC=2.17
LARGEST_PROGRAM=40000000

strict=yes dist=""
case "${1:-}" in
'') ;;
--install)
    # shellcheck source-path=SCRIPTDIR source=../docker/lib.sh
    source docker/lib.sh
    declare -A package=([promtool]=prometheus [jq]=jq [shellcheck]=shellcheck [systemd-analyze]=systemd [rpmbuild]=rpm [readelf]=binutils
        [dpkg-deb]=dpkg [xz]=xz-utils)
    missing=()
    for tool in "${!package[@]}"; do
        have "$tool" || missing+=("${package[$tool]}")
    done
    if [ "${#missing[@]}" -gt 0 ]; then apt_install "${missing[@]}"; fi
    ;;
--lenient) strict=no ;;
--dist) dist="$(cd "${2:?}" && pwd)" ;;
*)
    printf 'usage: %s [--install | --lenient | --dist FOLDER]\n' "$0" >&2
    exit 64
    ;;
esac

faults=0
fault() {
    printf 'check: WRONG: %s\n' "$*"
    faults=$((faults + 1))
}
fine() { printf 'check: %s\n' "$*"; }

# needs TOOL WHAT: false, with a line that says what is not checked, when the tool is not there.
needs() {
    command -v "$1" >/dev/null 2>&1 && return 0
    if [ "$strict" = yes ]; then
        fault "$1 is not installed, so not checked: $2"
    else
        printf 'check: SKIPPED, as %s is not installed: %s\n' "$1" "$2"
    fi
    return 1
}

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# --- alerts ---------------------------------------------------------------------------------------------------------

alerts_are_right() {
    promtool check rules "$ALERTS" >"$scratch/log" 2>&1 || {
        fault "$ALERTS: $(cat "$scratch/log")"
        return
    }
    # Its messages are told only when it fails: they name every test otherwise.
    (cd "$(dirname "$TESTS")" && promtool test rules "$(basename "$TESTS")") >"$scratch/log" 2>&1 || {
        fault "$TESTS: $(cat "$scratch/log")"
        return
    }
    fine "$(grep -c -e '- alert: ' "$ALERTS") alerts are right, and $(grep -c '^  - name:' "$TESTS") tests of them pass"
}

every_alert_is_tested() {
    local name
    while read -r name; do
        grep -q "\"$name\"\|alertname: $name\$" "$TESTS" || fault "$name has no test in $TESTS"
    done < <(sed -n 's/^ *- alert: //p' "$ALERTS")
}

# A runbook is a heading; its anchor is the heading in small letters.
every_alert_has_its_runbook() {
    local runbooks anchor
    runbooks="$(grep -c '^ *runbook: ' "$ALERTS")"
    [ "$runbooks" = "$(grep -c -e '- alert: ' "$ALERTS")" ] || fault "an alert has no runbook"
    while read -r anchor; do
        grep -qix "### $anchor" "$RUNBOOKS" || fault "$RUNBOOKS has no section $anchor"
    done < <(sed -n "s|^ *runbook: $RUNBOOKS#||p" "$ALERTS" | sort -u)
    fine "every alert has its runbook"
}

# --- the dashboard --------------------------------------------------------------------------------------------------

# As a file of rules, one for each expression, which promtool can read. Grafana puts the variables in place; so does this.
expressions_can_be_read() {
    jq -r '
        [.panels[] | .title as $title | .targets[]? | {title: $title, expr: .expr}] | to_entries |
        "groups:", "- name: dashboard", "  rules:",
        (.[] | "  - record: kz_record_call:panel:\(.key)", "    expr: " + (.value.expr
            | gsub("\\$__rate_interval"; "5m") | gsub("\\$__range"; "6h") | gsub("\\$(job|instance)\\b"; ".*") | @json))
    ' "$DASHBOARD" >"$scratch/dashboard.yml"
    if grep -q '\$' "$scratch/dashboard.yml"; then
        fault "$DASHBOARD: a variable that this script does not know: $(grep '\$' "$scratch/dashboard.yml")"
    fi
    if promtool check rules "$scratch/dashboard.yml" >"$scratch/log" 2>&1; then
        fine "$(grep -c 'expr:' "$scratch/dashboard.yml") expressions of the dashboard can be read"
    else
        fault "$DASHBOARD: $(cat "$scratch/log")"
    fi
}

dashboard_is_whole() {
    jq -e '
        ([.panels[].id] | length == (unique | length))
        and ([.panels[] | select(.type != "row") | .targets | length > 0] | all)
        and ([.panels[].gridPos | .x + .w <= 24] | all)
        and (.templating.list | map(.name) | contains(["datasource", "job", "instance"]))
    ' "$DASHBOARD" >/dev/null || fault "$DASHBOARD: an id twice, a panel without an expression, one beside the page, or a variable missing"
}

# --- metrics --------------------------------------------------------------------------------------------------------

# Names as the code has them; what Prometheus makes of a histogram, and what our rules record, is not in the code.
named_in() { grep -oh 'kz_record_call_[a-z_]*' "$@" | sed -E 's/_(bucket|sum|count)$//' | sort -u; }

every_metric_exists() {
    local name shown=0
    grep -rhoE '"kz_record_call_[a-z_]+"' src/telemetry | tr -d '"' | sort -u >"$scratch/known"
    named_in "$ALERTS" "$TESTS" "$DASHBOARD" >"$scratch/named"
    while read -r name; do
        # The prefix of a name, in a pattern.
        [ "$name" != kz_record_call_ ] || continue
        if grep -qx "$name" "$scratch/known"; then
            shown=$((shown + 1))
        elif [[ " ${AWAITED//[$'\n ']/ } " == *" $name "* ]]; then
            if named_in "$DASHBOARD" | grep -qx "$name"; then fault "the dashboard shows $name, which does not exist yet"; fi
            fine "awaited, and its alert does not fire until then: $name"
        else
            fault "no metric is called $name"
        fi
    done <"$scratch/named"
    for name in $AWAITED; do
        if grep -qx "$name" "$scratch/known"; then fault "$name is there now: take it out of AWAITED in packaging/check.sh"; fi
    done
    fine "$shown of $(wc -l <"$scratch/known") metrics are watched or shown"
    named_in "$DASHBOARD" | comm -23 "$scratch/known" - | sed 's/^/check: on no panel: /'
}

# --- units ----------------------------------------------------------------------------------------------------------

# The unit for one worker and the one for several must differ in nothing but what names the instance.
units_agree() {
    local differing
    differing="$(diff <(grep -v '^#' "$UNIT") <(grep -v '^#' "$TEMPLATE") | grep '^[<>]' | grep -v '%i' || true)"
    if [ "$differing" != "< Description=Records Kazoo calls and loses none of them" ]; then
        fault "$UNIT and $TEMPLATE differ: $differing"
    fi
}

# What a unit says must hold against the settings' defaults.
units_outlive_the_drain() {
    local drain stop
    drain="$(sed -n 's/^drain_s = //p' config/default.toml)"
    stop="$(sed -n 's/^TimeoutStopSec=//p' "$UNIT")"
    [ "$stop" -gt $((drain + 10)) ] || fault "$UNIT: TimeoutStopSec=$stop is no longer than flow.drain_s ($drain) and the closing of connections"
}

units_can_be_read() {
    local unit exposure
    for unit in "$UNIT" "$TEMPLATE"; do
        # The program and the manual page are not installed here, and /bin/kill (procps) may not be.
        sed -E -e 's#^(ExecStart|ExecReload)=.*#\1=/bin/true#' -e 's|man:[^ ]* ||' "$unit" >"$scratch/$(basename "$unit")"
    done
    systemd-analyze verify "$scratch/$(basename "$UNIT")" "$scratch/kz-record-call@.service" >"$scratch/log" 2>&1 || true
    # It also tells of units of this host.
    if grep -q 'kz-record-call' "$scratch/log"; then fault "the units: $(grep kz-record-call "$scratch/log")"; fi
    exposure="$(systemd-analyze security --offline=true --no-pager "$scratch/$(basename "$UNIT")" 2>/dev/null |
        sed -n 's/.*Overall exposure level for [^:]*: \([0-9.]*\).*/\1/p')"
    [ -n "$exposure" ] || {
        fine "this systemd does not rate units offline"
        return
    }
    if [ "$(printf '%s\n' "$exposure" 1.5 | sort -g | head -n 1)" != "$exposure" ]; then
        fault "$UNIT: exposure $exposure; it was 1.2"
    fi
    fine "the units can be read, and agree; exposure $exposure of 10"
}

# --- scripts --------------------------------------------------------------------------------------------------------

scripts_are_clean() {
    local scripts
    mapfile -t scripts < <(git ls-files --cached --others --exclude-standard | xargs -r grep -lE '^#!.*\b(ba)?sh\b|^# shellcheck shell=' 2>/dev/null)
    if shellcheck -x "${scripts[@]}" >"$scratch/log" 2>&1; then
        fine "${#scripts[@]} scripts are clean"
    else
        fault "shellcheck: $(cat "$scratch/log")"
    fi
}

# --- packages -------------------------------------------------------------------------------------------------------

# Every file of a package as `MODE OWNER:GROUP PATH`, without the folders that it shares with other packages.
in_deb() {
    dpkg-deb --fsys-tarfile "$1" | tar --list --verbose --numeric-owner |
        awk '{ sub(/^\./, "", $6); sub(/\/$/, "", $6); print $1, $2, $6 }' | grep -E '^-|/kz-record-call($|/)' | sed 's| 0/0 | root:root |'
}
in_rpm() { rpm -qp --qf '[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]' "$1" 2>/dev/null; }

# What a package must have, said apart from the list that it is made from.
package_is_whole() {
    local which="$1" listing="$2" line path
    while read -r line; do
        grep -qxF -e "$line" "$listing" || fault "$which: no such file: $line"
    done <<'LINES'
-rwxr-xr-x root:root /usr/bin/kz-record-call
-rw-r--r-- root:root /usr/lib/systemd/system/kz-record-call.service
-rw-r--r-- root:root /usr/lib/systemd/system/kz-record-call@.service
-rw-r--r-- root:root /usr/share/kz-record-call/before-239.conf
-rw------- root:root /etc/kz-record-call/environment
-rw-r--r-- root:root /usr/share/doc/kz-record-call/copyright
-rw-r--r-- root:root /usr/share/doc/kz-record-call/config/default.toml
-rw-r--r-- root:root /usr/share/man/man1/kz-record-call.1.gz
-rw-r--r-- root:root /usr/share/bash-completion/completions/kz-record-call
-rw-r--r-- root:root /usr/share/fish/vendor_completions.d/kz-record-call.fish
LINES
    while read -r path; do
        grep -qxF -e "-rw-r--r-- root:root /usr/share/doc/kz-record-call/$path" "$listing" || fault "$which: no $path"
    done < <(git ls-files --cached --others --exclude-standard README.md CHANGELOG.md 'docs/*.md' 'schemas/*.json')
    if grep -vE '^.{5}-..-' "$listing"; then fault "$which: others than the owner may write to these"; fi
}

# The lines of a script, in a file: it can be read by a plain shell, and nothing in it waits to be filled in.
script_is_whole() {
    sh -n "$2" >"$scratch/log" 2>&1 || fault "$1: $(cat "$scratch/log")"
    if grep -n '@[A-Z]*@' "$2"; then fault "$1: a name that packaging/build.sh did not fill in"; fi
}

# packages_are_whole FOLDER PROGRAM: the packages in the folder, made of this program.
packages_are_whole() {
    local deb rpm name digest needed
    deb="$(echo "$1"/*.deb)" rpm="$(echo "$1"/*.rpm)"
    in_deb "$deb" >"$scratch/deb.files"
    in_rpm "$rpm" >"$scratch/rpm.files"
    package_is_whole "the deb" "$scratch/deb.files"
    package_is_whole "the rpm" "$scratch/rpm.files"
    # The deb's script gives files to the worker's user, which is not there before it; the rpm's list says the owner itself.
    for line in "-rw-r----- root:kz-record-call /etc/kz-record-call/config.toml" "drwx------ kz-record-call:kz-record-call /var/spool/kz-record-call"; do
        grep -qxF -e "$line" "$scratch/rpm.files" || fault "the rpm: no such file: $line"
    done
    for line in "own 0640 root:kz-record-call /etc/kz-record-call/config.toml" "own 0700 kz-record-call:kz-record-call /var/spool/kz-record-call"; do
        dpkg-deb --info "$deb" postinst | grep -qF "    $line" || fault "the deb's postinst: no line: $line"
    done
    diff <(awk '{ print $3 }' "$scratch/deb.files" | grep -v /zsh/ | sort) <(awk '{ print $3 }' "$scratch/rpm.files" | grep -v /zsh/ | sort) >"$scratch/log" ||
        fault "the deb and the rpm have other files: $(cat "$scratch/log")"
    [ "$(dpkg-deb --info "$deb" conffiles | sort | xargs)" = "/etc/kz-record-call/config.toml /etc/kz-record-call/environment" ] || fault "the deb: conffiles"
    [ "$(rpm -qp --qf '[%{FILEFLAGS:fflags} %{FILENAMES}\n]' "$rpm" 2>/dev/null | sed -n 's/^cn //p' | sort | xargs)" = \
        "/etc/kz-record-call/config.toml /etc/kz-record-call/environment" ] || fault "the rpm: %config(noreplace)"

    for name in postinst prerm postrm; do
        dpkg-deb --info "$deb" "$name" >"$scratch/script"
        script_is_whole "the deb's $name" "$scratch/script"
    done
    for name in prein postin preun postun; do
        rpm -qp --qf "%{${name^^}}" "$rpm" >"$scratch/script" 2>/dev/null
        if [ ! -s "$scratch/script" ] || [ "$(cat "$scratch/script")" = "(none)" ]; then fault "the rpm has no $name"; fi
        script_is_whole "the rpm's $name" "$scratch/script"
    done

    # Unpacked, without scripts: the bytes are those of the program, and of the repository.
    mkdir -p "$scratch/unpacked.deb" "$scratch/unpacked.rpm"
    dpkg-deb --extract "$deb" "$scratch/unpacked.deb"
    rpm2archive - <"$rpm" | tar --extract --gzip --no-same-owner --directory "$scratch/unpacked.rpm"
    digest="$(sha256sum <"$2")"
    for name in deb rpm; do
        [ "$(sha256sum <"$scratch/unpacked.$name/usr/bin/kz-record-call")" = "$digest" ] || fault "the $name has another program"
        cmp -s config/default.toml "$scratch/unpacked.$name/usr/share/doc/kz-record-call/config/default.toml" || fault "the $name has another default.toml"
        cmp -s "$UNIT" "$scratch/unpacked.$name/usr/lib/systemd/system/kz-record-call.service" || fault "the $name has another unit"
    done
    needed="$(glibc_of "$2")"
    dpkg-deb --field "$deb" Depends | grep -qF "libc6 (>= $needed)" || fault "the deb does not ask for glibc $needed"
    rpm -qpR "$rpm" 2>/dev/null | grep -qF "(GLIBC_$needed)" || fault "the rpm does not ask for glibc $needed"
    fine "the deb and the rpm have $(wc -l <"$scratch/rpm.files") files and folders, the same ones, and need glibc $needed"
}

# The newest version of glibc's symbols that a program names.
glibc_of() { objdump -T "$1" | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1 | cut -d _ -f 2; }

packages_can_be_made() {
    local made="$scratch/made"
    mkdir -p "$made/generated/man" "$made/generated/completions"
    echo . >"$made/generated/man/kz-record-call.1"
    for name in kz-record-call.bash _kz-record-call kz-record-call.fish; do echo . >"$made/generated/completions/$name"; done
    packaging/build.sh /bin/true --generated "$made/generated" --out "$made/out" >"$scratch/log" 2>&1 || {
        fault "the packages cannot be made: $(cat "$scratch/log")"
        return
    }
    packages_are_whole "$made/out" /bin/true
    packaging/build.sh /bin/true --generated "$made/generated" --out "$made/again" >/dev/null
    diff -rq "$made/out" "$made/again" >"$scratch/log" || fault "packaged twice, the bytes differ: $(cat "$scratch/log")"
}

# What `make dist` made.
dist_is_whole() {
    local program="$scratch/unpacked.deb/usr/bin/kz-record-call" version needed size file
    version="$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)"
    mkdir -p "$scratch/unpacked.deb"
    dpkg-deb --extract "$dist"/*.deb "$scratch/unpacked.deb"
    cp "$program" "$scratch/program"
    packages_are_whole "$dist" "$scratch/program"
    needed="$(glibc_of "$scratch/program")"
    [ "$(printf '%s\n%s\n' "$needed" "$OLDEST_GLIBC" | sort -V | tail -n 1)" = "$OLDEST_GLIBC" ] || fault "the program needs glibc $needed, newer than $OLDEST_GLIBC"
    size="$(stat -c %s "$scratch/program")"
    [ "$size" -lt "$LARGEST_PROGRAM" ] || fault "the program has $size bytes, no less than $LARGEST_PROGRAM"
    if readelf -S --wide "$scratch/program" | grep -q '\.debug_info'; then fault "the program has debug lines"; fi
    readelf -S --wide "$dist"/*.debug 2>/dev/null | grep -q '\.debug_line' || fault "the symbols have no lines"
    [ "$("$scratch/program" --version)" = "kz-record-call $version" ] || fault "the program says $("$scratch/program" --version), and Cargo.toml $version"
    (cd "$dist" && sha256sum --check --quiet SHA256SUMS) >"$scratch/log" 2>&1 || fault "the checksums: $(cat "$scratch/log")"
    for file in "$dist"/*; do
        [ "$(basename "$file")" = SHA256SUMS ] || grep -qF "  $(basename "$file")" "$dist/SHA256SUMS" || fault "no checksum of $(basename "$file")"
    done
    jq -e --arg version "$version" '.bomFormat == "CycloneDX" and .metadata.component.version == $version and (.components | map(.name) | contains(["lapin", "rustls", "tokio"]))' \
        "$dist"/*.cdx.json >/dev/null || fault "the SBOM does not name the crates"
    grep -q "^## $version" CHANGELOG.md || fault "CHANGELOG.md does not tell of $version"
    fine "the program has $size bytes, runs, and needs glibc $needed"
}

if [ -n "$dist" ]; then
    for tool in dpkg-deb rpm readelf objdump jq; do needs "$tool" "what is in $dist" || exit 1; done
    dist_is_whole
    if [ "$faults" -gt 0 ]; then
        printf 'check: FAILED: %s faults\n' "$faults"
        exit 1
    fi
    exit 0
fi

if needs promtool "the alerts and their tests"; then alerts_are_right; fi
every_alert_is_tested
every_alert_has_its_runbook
if needs jq "the dashboard"; then
    if jq -e . "$DASHBOARD" >/dev/null; then
        dashboard_is_whole
        if needs promtool "the dashboard's expressions"; then expressions_can_be_read; fi
    else
        fault "$DASHBOARD is not JSON"
    fi
fi
every_metric_exists
units_agree
units_outlive_the_drain
if needs systemd-analyze "the units' syntax and exposure"; then units_can_be_read; fi
if needs shellcheck "the scripts"; then scripts_are_clean; fi
if needs rpmbuild "the packages" && needs readelf "the packages" && needs dpkg-deb "the packages" && needs xz "the packages"; then packages_can_be_made; fi

if [ "$faults" -gt 0 ]; then
    printf 'check: FAILED: %s faults\n' "$faults"
    exit 1
fi
fine "all is well"
