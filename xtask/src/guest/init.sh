#!/bin/bash
# The first process of a guest: mounts, modules, network, soft-RoCE; then the program, whose output and end
# it reports through virtio ports. Its settings are in /etc/selvage, written when the image was made.
# Not busybox's shell, because that one takes its own `ip` before iproute2's.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts pts /dev/pts
# /tmp and /run stay on the root, which is memory, too: what was brought may lie there.
mkdir -p /run
ln -sf /proc/self/fd /dev/fd
ulimit -l unlimited
ulimit -n 65536

while read -r module; do
    insmod "$module" || echo "init: cannot load $module"
done </etc/selvage/modules

. /etc/selvage/settings
guest=
for word in $(</proc/cmdline); do
    case $word in selvage.guest=*) guest=${word#*=} ;; esac
done
hostname "guest$guest"

# Ports under their names, as udev would have it.
mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name" && ln -sf "/dev/${port##*/}" "/dev/virtio-ports/$name"
done
status_port=/dev/virtio-ports/status

give_up() {
    echo "init: $1"
    echo "failed $1" >"$status_port"
    poweroff -f
}

# One soft-RoCE device per interface. An address that is local on another interface is taken as a source,
# without which no queue pair between two devices of one guest becomes ready.
soft_roce() {
    local device=$1 interface=$2 address=$3
    ip address add "$address" dev "$interface"
    ip link set "$interface" mtu "$mtu" up
    echo 1 >"/proc/sys/net/ipv4/conf/$interface/accept_local"
    echo 0 >"/proc/sys/net/ipv4/conf/$interface/rp_filter"
    rdma link add "$device" type rxe netdev "$interface" || give_up "no soft-RoCE device on $interface"
}

# Nobody else is in these networks: link-local addresses, and the GIDs made of them, count at once.
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
if [ -n "$guest" ]; then
    address=10.77.0.$((10 + guest))
    soft_roce rxe0 eth0 "$address/24"
else
    ip link add v0 type veth peer name v1
    soft_roce rxe0 v0 10.77.0.1/24
    soft_roce rxe1 v1 10.77.0.2/24
fi
mkdir -p /dev/infiniband
for device in /sys/class/infiniband_verbs/uverbs*; do
    node=/dev/infiniband/${device##*/}
    IFS=: read -r major minor <"$device/dev"
    [ -e "$node" ] || mknod "$node" c "$major" "$minor"
    # As the host's packages have it: every user may open a device, the kernel keeps them apart.
    chmod 666 "$node"
done
mapfile -d '' -t command </etc/selvage/command
while IFS= read -r -d '' variable; do
    export "${variable?}"
done </etc/selvage/environment
cd "$directory" || give_up "no folder $directory"

# Through pipes, because a port can be opened once, and programs open /dev/stderr again.
mkfifo /run/stdout /run/stderr
cat /run/stdout >/dev/virtio-ports/stdout &
readers=$!
cat /run/stderr >/dev/virtio-ports/stderr &
readers="$readers $!"
if [ -n "$guest" ]; then
    agent=("$agent" "$address:7077")
    if [ "$guest" = 0 ]; then
        "${agent[@]}" </dev/null >/dev/console 2>&1 &
        # The program finds all hosts up, as it would in a cluster that it did not start.
        for ((host = 1; host <= hosts; host++)); do
            until (: <>"/dev/tcp/10.77.0.$((10 + host))/7077") 2>/dev/null; do
                sleep 0.2
            done
        done
    else
        command=("${agent[@]}")
    fi
fi
echo "ready $(cut -d' ' -f1 /proc/uptime)" >"$status_port"
setsid "${command[@]}" </dev/null >/run/stdout 2>/run/stderr
code=$?
# What the program started and left behind may hold the pipes open.
for _ in {1..20}; do
    kill -0 $readers 2>/dev/null || break
    sleep 0.1
done
[ -n "$results" ] && [ -f "$results" ] && cat "$results" >/dev/virtio-ports/results
echo "exit $code" >"$status_port"
poweroff -f
