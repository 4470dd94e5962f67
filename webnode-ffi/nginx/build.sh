#!/bin/bash
# Builds the nginx module against Debian's nginx-dev, as any user, outside of the source tree.
#
#   build.sh OUT_DIR LIB_DIR
#
# OUT_DIR gets ngx_http_selvage_module.so (for nginx's load_module), a link libselvage.so.0 beside it, and the
# build's own files; nothing else is written. LIB_DIR holds libselvage.so, as cargo builds it. Run it again at
# any time: it configures once per nginx and compiles what has changed.
set -euo pipefail

fail() { echo "build.sh: $*" >&2; exit 1; }

[ $# = 2 ] || fail "usage: build.sh OUT_DIR LIB_DIR"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_dir=${SELVAGE_NGINX_SOURCE:-/usr/share/nginx/src}
include_dir=$(cd "$here/../../include" && pwd)
[ -f "$2/libselvage.so" ] || fail "no libselvage.so in $2: cargo build -p selvage-webnode-ffi"
lib_dir=$(cd "$2" && pwd)
mkdir -p "$1"
out_dir=$(cd "$1" && pwd)

[ -f "$source_dir/conf_flags" ] || fail "nginx's headers are missing: apt-get install nginx-dev"
for tool in nginx:nginx-light gcc:gcc make:make; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${tool%%:*}" >/dev/null \
        || fail "${tool%%:*} is missing: apt-get install ${tool##*:}"
done
nginx_version=$(PATH="$PATH:/usr/sbin:/sbin" nginx -v 2>&1)

exec 9>"$out_dir/lock"
flock 9

# The link by which the loader finds the library whose soname has a number.
ln -sfn "$lib_dir/libselvage.so" "$out_dir/libselvage.so.0"

# Configuring writes into the current folder, which may be another user's: work in a copy of links.
copy=$out_dir/nginx-src
build=$out_dir/build
stamp="$nginx_version|$source_dir|$lib_dir|$include_dir|$here|$(cksum "$here/config" "$here/build.sh")"
if [ "$(cat "$out_dir/stamp" 2>/dev/null || true)" != "$stamp" ]; then
    rm -rf "$copy" "$build" "$out_dir/stamp"
    cp -rs "$source_dir" "$copy"
    # shellcheck disable=SC1091
    . "$source_dir/conf_flags"
    (
        cd "$copy"
        export SELVAGE_INCLUDE=$include_dir
        export SELVAGE_LIB="-L$lib_dir -lselvage -Wl,-rpath,$out_dir:$lib_dir"
        ./configure "${NGX_CONF_FLAGS[@]}" --builddir="$build" --add-dynamic-module="$here" \
            --with-cc-opt="-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror" >"$out_dir/configure.log" 2>&1
    ) || fail "configure failed: see $out_dir/configure.log"
    printf '%s' "$stamp" >"$out_dir/stamp"
fi

(cd "$copy" && make -f "$build/Makefile" modules >"$out_dir/make.log" 2>&1) \
    || { tail -n 30 "$out_dir/make.log" >&2; fail "make failed: see $out_dir/make.log"; }
if ! cmp -s "$build/ngx_http_selvage_module.so" "$out_dir/ngx_http_selvage_module.so"; then
    # Replaced whole, for a running nginx may have the old one mapped.
    cp "$build/ngx_http_selvage_module.so" "$out_dir/ngx_http_selvage_module.so.new"
    mv "$out_dir/ngx_http_selvage_module.so.new" "$out_dir/ngx_http_selvage_module.so"
fi
echo "$out_dir/ngx_http_selvage_module.so"
