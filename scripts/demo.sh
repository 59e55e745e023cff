#!/usr/bin/env bash
# Two hosts in network namespaces, real traffic between them, and the flows that
# flowmon writes of it. Needs root; leaves nothing behind but the records.
set -euo pipefail
cd "$(dirname "$0")/.."

flowmon="$PWD/.venv/bin/flowmon"
client='flowmon-demo-client'
server='flowmon-demo-server'
records="$PWD/demo-flows"
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
	ip netns delete $client 2>/dev/null || true
	ip netns delete $server 2>/dev/null || true
}
trap clean_up EXIT

make_hosts() {
	ip netns add $client
	ip netns add $server
	ip link add demo0 netns $client type veth peer name demo0 netns $server
	at $client ip address add 10.77.0.1/24 dev demo0
	at $server ip address add 10.77.0.2/24 dev demo0
	at $client ip address add fd77::1/64 dev demo0 nodad
	at $server ip address add fd77::2/64 dev demo0 nodad
	for host in $client $server; do
		at "$host" ip link set lo up
		at "$host" ip link set demo0 up
	done
}

start_servers() {
	start_at $server iperf3 --server >/dev/null 2>&1
	start_at $server python3 -m http.server 8000 --bind :: --directory docs >/dev/null 2>&1
	until at $server ss -Hltn | grep -q ':5201' && at $server ss -Hltn | grep -q ':8000'; do sleep 0.05; done
}

make_traffic() {
	at $client iperf3 --client 10.77.0.2 --time 2 >/dev/null
	at $client iperf3 --client fd77::2 --time 1 --reverse >/dev/null
	at $client curl -sf -o /dev/null http://10.77.0.2:8000/architecture.md
	at $client curl -sf -o /dev/null 'http://[fd77::2]:8000/architecture.md'
	at $client ping -q -c 5 -i 0.1 10.77.0.2 >/dev/null
	at $client dig +tries=1 +time=1 @10.77.0.2 example.org >/dev/null || true
}

rm -rf "$records"
make_hosts
start_servers
start_at $client "$flowmon" --iface demo0 -i 1 -d "$records"
monitor=$!
until at $client tc filter show dev demo0 egress 2>/dev/null | grep -q flowmon; do sleep 0.05; done
echo "traffic: iperf3 over IPv4 and IPv6, curl, ping, dig"
make_traffic
sleep 2
kill "$monitor"
wait "$monitor"

echo
echo "the flows in $records, by octets:"
.venv/bin/python scripts/show_flows.py "$records"
