#!/usr/bin/env bash
# Checks what is packaged: that the alerts are right and their tests pass, that every expression of the dashboard can be read, that every metric that
# is named exists, every runbook is written, the units agree, and the scripts are clean. Needs no build and no engine.
#
# It needs promtool (Debian: prometheus), jq, shellcheck, and systemd-analyze (systemd); one that is missing is a failure. With --install they are
# installed from Debian's packages first; with --lenient what a missing tool would have checked is skipped, with a line that says so.
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

strict=yes
case "${1:-}" in
'') ;;
--install)
    # shellcheck source-path=SCRIPTDIR source=../docker/lib.sh
    source docker/lib.sh
    declare -A package=([promtool]=prometheus [jq]=jq [shellcheck]=shellcheck [systemd-analyze]=systemd)
    missing=()
    for tool in "${!package[@]}"; do
        have "$tool" || missing+=("${package[$tool]}")
    done
    if [ "${#missing[@]}" -gt 0 ]; then apt_install "${missing[@]}"; fi
    ;;
--lenient) strict=no ;;
*)
    printf 'usage: %s [--install | --lenient]\n' "$0" >&2
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
        # The program and the manual page are not installed here.
        sed -e 's|^ExecStart=.*|ExecStart=/bin/true|' -e 's|man:[^ ]* ||' "$unit" >"$scratch/$(basename "$unit")"
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

if [ "$faults" -gt 0 ]; then
    printf 'check: FAILED: %s faults\n' "$faults"
    exit 1
fi
fine "all is well"
