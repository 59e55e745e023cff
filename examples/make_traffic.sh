#!/usr/bin/env bash
# Ordinary traffic and two floods between network namespaces, recorded by flowmon with packet features: examples/make_traffic.sh DIR.
# Takes half a minute and root; leaves nothing behind but DIR. Nothing leaves the namespaces.
#
#   flowmon-lab-out                                        flowmon-lab-server
#   clients   10.77.1.1 to .10                             10.77.0.2
#   attackers 10.66.0.1 to .10, and .11 to .20, forged     HTTP, echo, UDP 53, iperf3; flowmon on lab0
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
records=$(realpath -m "$1")
[ ! -e "$records" ] || { echo "$records is there already: two recordings must not mix" >&2; exit 2; }
cd "$(dirname "$0")/.."

out='flowmon-lab-out'
server='flowmon-lab-server'
address='10.77.0.2'
seconds=20
clients=(10.77.1.{1..10})
own=(10.66.0.{1..10})
forged=(10.66.0.{11..20})
started=()

at() { # at HOST COMMAND...: run it in that host's network namespace
	local host=$1
	shift
	nsenter --net="/run/netns/$host" "$@"
}

start_at() { # start_at HOST COMMAND...: the same, in the background; its process id in $!
	local host=$1
	shift
	nsenter --net="/run/netns/$host" "$@" &
	started+=($!)
}

clean_up() {
	for process in "${started[@]}"; do
		kill "$process" 2>/dev/null || true
		wait "$process" 2>/dev/null || true
	done
	ip netns delete $out 2>/dev/null || true
	ip netns delete $server 2>/dev/null || true
}
trap clean_up EXIT

make_hosts() {
	ip netns add $out
	ip netns add $server
	ip link add lab0 netns $out type veth peer name lab0 netns $server
	at $out ip address add 10.77.0.1/24 dev lab0
	at $server ip address add $address/24 dev lab0
	for one in "${clients[@]}" "${own[@]}"; do at $out ip address add "$one/32" dev lo; done
	for host in $out $server; do
		at "$host" sysctl -qw net.ipv4.ip_forward=0
		at "$host" ip link set lo up
		at "$host" ip link set lab0 up
	done
	# Who is nowhere: replies to forged addresses end in $out, and SYNs to 10.99.0.1 in $server.
	at $server ip route add 10.77.1.0/24 via 10.77.0.1
	at $server ip route add 10.66.0.0/24 via 10.77.0.1
	at $out ip route add 10.99.0.1 via $address
}

start_servers() {
	start_at $server iperf3 --server >/dev/null 2>&1
	start_at $server python3 examples/lab_talk.py serve
	until at $server ss -Hltn | grep -q ':5201' && at $server ss -Hltn | grep -q ':2323'; do sleep 0.05; done
}

make_ordinary_traffic() {
	start_at $out python3 examples/lab_talk.py talk $address $seconds "${clients[@]}"
	local talk=$!
	for client in "${clients[@]}"; do
		at $out ping -q -c 5 -i 0.3 -I "$client" $address >/dev/null
	done
	at $out iperf3 --client $address --bind "${clients[0]}" --bytes 30M --parallel 2 >/dev/null
	at $out iperf3 --client $address --bind "${clients[1]}" --bytes 30M --reverse >/dev/null
	at $out iperf3 --client $address --bind "${clients[2]}" --udp --bitrate 4M --time 2 >/dev/null
	wait $talk
}

# From each address 60 SYNs, 20 a second, and 60 datagrams from as many ports, of its own size; from one
# also 300 from one port. hping3 says nothing of use, and fails where nobody answers.
make_floods() {
	sleep 4
	for one in "${own[@]}" "${forged[@]}"; do
		at $out hping3 -q -S -p 8000 -a "$one" -c 60 -i u50000 $address >/dev/null 2>&1 &
	done
	sleep 6
	for one in "${own[@]}" "${forged[@]}"; do
		at $out hping3 -q --udp -p 53 -d $((15 + 2 * ${one##*.})) -a "$one" -c 60 -i u50000 $address >/dev/null 2>&1 &
	done
	at $out hping3 -q --udp -p 53 -k -s 4444 -d 32 -a "${own[0]}" -c 300 -i u10000 $address >/dev/null 2>&1 &
	wait
}

make_hosts
start_servers
start_at $server .venv/bin/flowmon --iface lab0 -i 1 -d "$records" --features --sessions 16384
monitor=$!
until at $server tc filter show dev lab0 egress 2>/dev/null | grep -q flowmon; do
	kill -0 $monitor # else it has said why
	sleep 0.05
done
echo "traffic for $seconds s: HTTP, questions by UDP, typing, ping, iperf3; a SYN flood, a UDP flood"
(make_floods) &
started+=($!)
floods=$!
make_ordinary_traffic
wait $floods || true
sleep 1
kill $monitor
wait $monitor

echo "recorded in $records"
