#!/usr/bin/env bash
# Packages a program that is built: a Debian package, an RPM and a tarball, from the list packaging/files.
#
#     packaging/build.sh PROGRAM [--generated FOLDER] [--out FOLDER]
#
# --generated: manual pages and completions of that program, as packaging/generate.sh makes them; packaging/generated if not given. --out: where the
# packages go; target/dist if not given. Needs dpkg-deb, rpmbuild (Debian: rpm), readelf and objdump (binutils). The same commit gives the same bytes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME=kz-record-call
LIST=packaging/files
SUMMARY="Records Kazoo calls on behalf of callflows, and loses none of them"
MAINTAINER="kz-record-call maintainers <maintainers@kz-record-call.invalid>"

die() {
    printf 'build: %s\n' "$*" >&2
    exit 1
}
usage() {
    printf 'usage: %s PROGRAM [--generated FOLDER] [--out FOLDER]\n' "$0" >&2
    exit 64
}

program="" generated=packaging/generated out="${CARGO_TARGET_DIR:-target}/dist"
while [ $# -gt 0 ]; do
    case "$1" in
    --generated) generated="${2:?}" && shift ;;
    --out) out="${2:?}" && shift ;;
    -*) usage ;;
    *)
        [ -z "$program" ] || usage
        program="$1"
        ;;
    esac
    shift
done
[ -n "$program" ] || usage
[ -x "$program" ] || die "$program is no program"
[ -d "$generated/man" ] || die "$generated has no manual pages: packaging/generate.sh $program"
for tool in dpkg-deb rpmbuild readelf objdump xz; do
    command -v "$tool" >/dev/null || die "$tool is not installed"
done
mkdir -p "$out"
out="$(cd "$out" && pwd)"

version="$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)"
[ -n "$version" ] || die "Cargo.toml has no version"
# The time of the commit: what is packaged twice has the same times.
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH

case "$(readelf -h "$program" | sed -n 's/^ *Machine: *//p')" in
*X86-64*) deb_arch=amd64 rpm_arch=x86_64 ;;
AArch64*) deb_arch=arm64 rpm_arch=aarch64 ;;
*) die "$program is for a machine that this script does not know" ;;
esac

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# --- the files ------------------------------------------------------------------------------------------------------

shopt -s globstar nullglob

# Lines `MODE OWNER KIND SOURCE DESTINATION`, one for each file, with patterns and names resolved.
listed() {
    local zsh="$1" mode owner kind source destination place files file
    while read -r mode owner kind source destination; do
        [[ "$mode" != \#* && -n "$mode" ]] || continue
        source="${source//@PROGRAM@/$program}"
        source="${source/#packaging\/generated/$generated}"
        destination="${destination//@ZSH@/$zsh}"
        if [ "$kind" = dir ]; then
            printf '%s %s dir - %s\n' "$mode" "$owner" "$destination"
            continue
        fi
        # shellcheck disable=SC2206  # a pattern that is to be resolved; no name in it has blanks
        files=($source)
        [ "${#files[@]}" -gt 0 ] || die "$LIST: $source: no such file"
        for file in "${files[@]}"; do
            [ -f "$file" ] || die "$LIST: $file: no such file"
            place="$destination"
            if [[ "$source" == *'**'* ]]; then
                place="$destination${file#"${source%%'**'*}"}"
            elif [[ "$destination" == */ ]]; then
                place="$destination$(basename "$file")"
            fi
            # Distributions expect manual pages to be compressed.
            if [[ "$place" == /usr/share/man/* ]]; then place="$place.gz"; fi
            printf '%s %s %s %s %s\n' "$mode" "$owner" "$kind" "$file" "$place"
        done
    done <"$LIST"
}

# stage FOLDER LISTED: the files at their places; owners are for the packages to say.
stage() {
    local mode kind source destination
    while read -r mode _ kind source destination; do
        if [ "$kind" = dir ]; then
            install -d -m "$mode" "$1$destination"
        elif [[ "$destination" == *.gz ]]; then
            install -D -m "$mode" <(gzip -9n <"$source") "$1$destination"
        else
            install -D -m "$mode" "$source" "$1$destination"
        fi
    done <"$2"
    find "$1" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# A script with what both packages share, and the owners of what root does not own, in their places.
script() {
    local line mode owner destination
    while IFS= read -r line; do
        case "$line" in
        @COMMON@) sed '1,/^$/d' packaging/scripts/common.sh ;;
        *@OWN@)
            while read -r mode owner _ _ destination; do
                if [ "$owner" != root:root ]; then printf '    own %s %s %s\n' "$mode" "$owner" "$destination"; fi
            done <"$scratch/deb.list"
            ;;
        *) printf '%s\n' "$line" ;;
        esac
    done <"$1"
}

listed /usr/share/zsh/vendor-completions >"$scratch/deb.list"
listed /usr/share/zsh/site-functions >"$scratch/rpm.list"

# --- what the program needs -----------------------------------------------------------------------------------------

# procps and util-linux have /bin/kill, which the units reload with.
glibc="$(objdump -T "$program" | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -n 1 | cut -d _ -f 2)"
[ -n "$glibc" ] || die "$program names no version of glibc"
depends="libc6 (>= $glibc), adduser, ca-certificates, procps"
if readelf -d "$program" | grep -q 'NEEDED.*libgcc_s'; then depends="$depends, libgcc-s1 | libgcc1"; fi

# --- the Debian package ---------------------------------------------------------------------------------------------

deb="$out/${NAME}_$version-1_$deb_arch.deb"
root="$scratch/deb"
stage "$root" "$scratch/deb.list"
mkdir -p "$root/DEBIAN"
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum) >"$root/DEBIAN/md5sums"
awk '$3 == "config" { print $5 }' "$scratch/deb.list" >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<CONTROL
Package: $NAME
Version: $version-1
Architecture: $deb_arch
Section: comm
Priority: optional
Maintainer: $MAINTAINER
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f 1)
Depends: $depends
Suggests: prometheus
Description: $SUMMARY
 A daemon beside a Kazoo VoIP cluster. It runs the record_call action of
 callflows, delivers the audio from the media switch to its destination, and
 publishes the outcome of each recording. A worker that is killed loses nothing:
 unfinished work is in RabbitMQ and CouchDB, and another worker resumes it.
CONTROL
for name in postinst prerm postrm; do
    script "packaging/scripts/deb/$name" >"$root/DEBIAN/$name"
    chmod 755 "$root/DEBIAN/$name"
done
chmod 755 "$root" "$root/DEBIAN"
dpkg-deb --root-owner-group -Zxz --build "$root" "$deb" >/dev/null

# --- the RPM --------------------------------------------------------------------------------------------------------

rpm="$out/$NAME-$version-1.$rpm_arch.rpm"
root="$scratch/rpm"
stage "$root" "$scratch/rpm.list"
{
    cat <<SPEC
Name: $NAME
Version: $version
Release: 1
Summary: $SUMMARY
License: MIT
Group: Applications/Communications
Vendor: $MAINTAINER
Requires: ca-certificates, util-linux
Requires(pre): /usr/sbin/useradd, /usr/sbin/groupadd
Requires(post): systemd
%description
A daemon beside a Kazoo VoIP cluster. It runs the record_call action of
callflows, delivers the audio from the media switch to its destination, and
publishes the outcome of each recording. A worker that is killed loses nothing:
unfinished work is in RabbitMQ and CouchDB, and another worker resumes it.
%install
cp -a "$root/." "%{buildroot}/"
SPEC
    for name in pre post preun postun; do
        printf '%%%s\n' "$name"
        # A % of the script is not a macro.
        script "packaging/scripts/rpm/$name" | tail -n +2 | sed 's/%/%%/g'
    done
    printf '%%files\n%%defattr(-,root,root)\n'
    awk '{ split($2, who, ":")
        kind = $3 == "config" ? "%config(noreplace) " : $3 == "dir" ? "%dir " : $5 ~ "^/usr/share/doc/" ? "%doc " : ""
        printf "%s%%attr(%s,%s,%s) %s\n", kind, $1, who[1], who[2], $5 }' "$scratch/rpm.list"
    # Folders of this package alone, which go with it.
    (cd "$root" && find . -type d -path "*/$NAME*" ! -path './var/*' -printf '%%dir %%attr(0755,root,root) /%P\n' | sed 's/^%%/%/; s/%%attr/%attr/' | LC_ALL=C sort)
} >"$scratch/spec"
# What Enterprise Linux 7 can read: its rpm is 4.11, without zstd.
rpmbuild -bb --quiet --target "$rpm_arch-linux" \
    --define "_topdir $scratch/topdir" --define "_rpmdir $scratch/topdir" --define "_rpmfilename $(basename "$rpm")" \
    --define "_binary_payload w6.xzdio" --define "_binary_filedigest_algorithm 8" --define "_build_id_links none" \
    --define "debug_package %{nil}" --define "__os_install_post %{nil}" \
    --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" --define "_buildhost localhost" \
    "$scratch/spec" >"$scratch/log" 2>&1 || {
    cat "$scratch/log" >&2
    die "rpmbuild failed"
}
mv "$scratch/topdir/$(basename "$rpm")" "$rpm"

# --- the tarball ----------------------------------------------------------------------------------------------------

# For other distributions: the files at their places, without a user and without scripts.
tarball="$out/$NAME-$version-linux-$rpm_arch.tar.xz"
tar --create --xz --file "$tarball" --sort=name --owner=root:0 --group=root:0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
    --transform "s|^\.|$NAME-$version|" --directory "$root" .

for file in "$deb" "$rpm" "$tarball"; do
    printf 'build: %s (%s KB), needs glibc %s\n' "$file" "$(($(stat -c %s "$file") / 1024))" "$glibc"
done
