#!/bin/bash
# Two soft-RoCE devices on a veth pair of this host, until standard input ends. Then everything is as before.
# A process of its own, because whoever asked for it may be killed at any moment.
set -u
tell() {
    echo "$1"
    exit 1
}
[ "$(id -u)" = 0 ] || tell "not root"
[ ! -e /sys/class/net/v0 ] && [ ! -e /sys/class/net/v1 ] || tell "an interface v0 or v1 is there already"
[ ! -e /sys/class/infiniband/rxe0 ] && [ ! -e /sys/class/infiniband/rxe1 ] || tell "a device rxe0 or rxe1 is there already"
command -v modprobe ip rdma >/dev/null || tell "modprobe, ip or rdma is missing"
loaded=$(grep -c '^rdma_rxe ' /proc/modules 2>/dev/null)
modprobe rdma_rxe 2>/dev/null || tell "the kernel has no rdma_rxe"
filter=$(</proc/sys/net/ipv4/conf/all/rp_filter)

undo() {
    rdma link delete rxe0
    rdma link delete rxe1
    ip link delete v0
    echo "$filter" >/proc/sys/net/ipv4/conf/all/rp_filter
    [ "$loaded" = 0 ] && modprobe -r rdma_rxe
} 2>/dev/null
trap undo EXIT

echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
ip link add v0 type veth peer name v1 || tell "no veth pair can be made"
for number in 0 1; do
    ip address add "10.77.0.$((number + 1))/24" dev "v$number"
    ip link set "v$number" mtu 9000 up
    echo 1 >"/proc/sys/net/ipv4/conf/v$number/accept_local"
    echo 0 >"/proc/sys/net/ipv4/conf/v$number/rp_filter"
    rdma link add "rxe$number" type rxe netdev "v$number" || tell "soft-RoCE refuses v$number"
done
echo ready
cat >/dev/null
