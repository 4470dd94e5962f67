# perftest between two devices of one host: latency and rate of writes, at the sizes that the benchmark has.
IFS=, read -r first second <<<"${SELVAGE_RDMA_DEVICES:-rxe0,rxe1}"

# The index of a GID that is RoCE v2 and no link-local one; InfiniBand has no such choice.
gid() {
    local file index
    for file in "/sys/class/infiniband/$1/ports/1/gid_attrs/types"/*; do
        index=${file##*/}
        grep -qs 'RoCE v2' "$file" || continue
        grep -qE '^(fe80|0000:0000:0000:0000:0000:0000)' "/sys/class/infiniband/$1/ports/1/gids/$index" && continue
        echo "-x $index"
        return
    done
}
first_gid=$(gid "$first") second_gid=$(gid "$second")

measure() {
    local program=$1 size=$2 rounds=$3 said=/tmp/perftest.$$ server try
    "$program" -d "$second" $second_gid -s "$size" -n "$rounds" >/dev/null 2>&1 &
    server=$!
    for try in {1..50}; do
        sleep 0.2
        if "$program" -d "$first" $first_gid -s "$size" -n "$rounds" 127.0.0.1 >"$said" 2>&1; then
            wait "$server"
            grep -A1 '#bytes' "$said"
            rm -f "$said"
            return
        fi
        kill -0 "$server" 2>/dev/null || break
    done
    cat "$said"
    rm -f "$said"
    kill "$server" 2>/dev/null
    exit 1
}
for size in 256 1024 4096 65536; do
    echo "ib_write_lat, $size bytes"
    measure ib_write_lat "$size" 500
    echo "ib_write_bw, $size bytes"
    measure ib_write_bw "$size" 1000
done
