#!/bin/sh
# Lays out the root of an image that has one program and nothing else but what the program needs: its libraries, the trusted authorities, and the few
# files of /etc that glibc reads. docker/Dockerfile runs it in the stage that builds; it needs ldd of the system that the program was linked on.
#
#     docker/root.sh PROGRAM FOLDER
set -eu

program="$1" root="$2"
certificates=/etc/ssl/certs/ca-certificates.crt

mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/tmp"
chmod 1777 "$root/tmp"
# Backtraces keep the functions' names, without line numbers: those are four fifths of the size.
strip --strip-debug -o "$root/usr/bin/$(basename "$program")" "$program"

# copy FILE: to the same place, and what a link leads to under the link's name.
copy() {
    mkdir -p "$root$(dirname "$1")"
    cp -L "$1" "$root$1"
}
libraries="$(ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-[^ ]*\) .*/\1/p')"
for library in $libraries; do copy "$library"; done
# Before 2.34 glibc looked names up by libraries that it loaded when it needed them.
folder="$(dirname "$(printf '%s\n' "$libraries" | grep '/libc\.so')")"
for library in "$folder"/libnss_files.so.2 "$folder"/libnss_dns.so.2 "$folder"/libresolv.so.2; do
    if [ -e "$library" ]; then copy "$library"; fi
done

# Users' https URLs are checked against these; the HTTP client is not built without any.
[ -s "$certificates" ] || {
    echo "root: $certificates is missing: install ca-certificates" >&2
    exit 1
}
copy "$certificates"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
printf 'root:x:0:0:root:/:/sbin/nologin\nkz-record-call:x:24530:24530::/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nkz-record-call:x:24530:\n' >"$root/etc/group"
