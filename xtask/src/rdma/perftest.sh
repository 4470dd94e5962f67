# perftest between the two devices: latency and rate of writes, at the sizes that the benchmark has.
measure() {
    local program=$1 size=$2 rounds=$3
    "$program" -d rxe1 -x 1 -s "$size" -n "$rounds" >/dev/null 2>&1 &
    local server=$! try
    for try in {1..50}; do
        sleep 0.2
        if "$program" -d rxe0 -x 1 -s "$size" -n "$rounds" 10.77.0.2 >/tmp/perftest.$$ 2>&1; then
            wait "$server"
            grep -A1 '#bytes' /tmp/perftest.$$
            rm -f /tmp/perftest.$$
            return
        fi
        kill -0 "$server" 2>/dev/null || break
    done
    cat /tmp/perftest.$$
    exit 1
}
for size in 256 1024 4096 65536; do
    echo "ib_write_lat, $size bytes"
    measure ib_write_lat "$size" 500
    echo "ib_write_bw, $size bytes"
    measure ib_write_bw "$size" 1000
done
