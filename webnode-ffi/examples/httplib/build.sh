#!/bin/bash
# Builds the C++ web server on Debian's cpp-httplib.
#
#   build.sh OUT_DIR LIB_DIR
#
# OUT_DIR gets selvage-httplib-node and a link libselvage.so.0 beside it; nothing else is written. LIB_DIR
# holds libselvage.so, as cargo builds it. Run it again at any time: it compiles only after a change.
set -euo pipefail

fail() { echo "build.sh: $*" >&2; exit 1; }

[ $# = 2 ] || fail "usage: build.sh OUT_DIR LIB_DIR"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
include_dir=$(cd "$here/../../../include" && pwd)
[ -f "$2/libselvage.so" ] || fail "no libselvage.so in $2: cargo build -p selvage-webnode-ffi"
lib_dir=$(cd "$2" && pwd)
for tool in g++:g++ pkg-config:pkg-config; do
    command -v "${tool%%:*}" >/dev/null || fail "${tool%%:*} is missing: apt-get install ${tool##*:}"
done
pkg-config --exists cpp-httplib || fail "cpp-httplib is missing: apt-get install libcpp-httplib-dev"
mkdir -p "$1"
out_dir=$(cd "$1" && pwd)

exec 9>"$out_dir/lock"
flock 9

# The link by which the loader finds the library whose soname has a number.
ln -sfn "$lib_dir/libselvage.so" "$out_dir/libselvage.so.0"

program=$out_dir/selvage-httplib-node
stamp="$lib_dir $(cat "$here"/* "$include_dir"/*.h* "$include_dir"/selvage/* | cksum)"
if [ ! -x "$program" ] || [ "$(cat "$out_dir/stamp" 2>/dev/null || true)" != "$stamp" ]; then
    rm -f "$out_dir/stamp"
    for name in main api server; do
        # shellcheck disable=SC2046
        g++ -std=c++17 -O2 -g -Wall -Wextra -Wpedantic -Wshadow -Werror -pthread -I"$include_dir" \
            $(pkg-config --cflags cpp-httplib) -c "$here/$name.cc" -o "$out_dir/$name.o" &
    done
    for job in $(jobs -p); do
        wait "$job" || fail "the compiler failed"
    done
    # shellcheck disable=SC2046
    g++ -pthread "$out_dir"/{main,api,server}.o -o "$program.new" "$out_dir/libselvage.so.0" \
        $(pkg-config --libs cpp-httplib) -Wl,-rpath,"$out_dir:$lib_dir"
    mv "$program.new" "$program"
    printf '%s' "$stamp" >"$out_dir/stamp"
fi
echo "$program"
