#!/usr/bin/env bash
# Installs what flowmon, its build and its tests need (Debian packages and a
# virtual environment in .venv), and builds the BPF object. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

run=(clang libbpf-dev libbpf1 libpcap0.8 llvm make iproute2 python3-venv python3-bpfcc)
try=(bind9-dnsutils bpftool clang-format curl ethtool hping3 iperf3 iputils-ping libfixbuf-tools masscan nfdump nmap
	pmacct procps prometheus shellcheck tcpreplay tshark util-linux)
# BCC compiles against kernel headers; those of the running kernel where Debian has them, else any.
headers="linux-headers-$(uname -r)"

as_root() {
	if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

is_installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
	local missing=() package
	for package in "${run[@]}" "${try[@]}"; do
		is_installed "$package" || missing+=("$package")
	done
	if [ ! -e "/lib/modules/$(uname -r)/build" ] && ! is_installed "$headers"; then
		missing+=("$headers")
	fi
	[ ${#missing[@]} -gt 0 ] || return 0
	as_root apt-get update -qq
	if ! apt-cache show "$headers" >/dev/null 2>&1; then
		missing=("${missing[@]/$headers/linux-headers-$(dpkg --print-architecture)}")
	fi
	echo "installing ${missing[*]}"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
	# The tests run their own, and of Prometheus only its checks: Debian's would listen from now on.
	local service
	for service in nfdump prometheus; do
		if [[ " ${missing[*]} " == *" $service "* && -d /run/systemd/system ]]; then
			as_root systemctl --quiet disable --now "$service.service"
		fi
	done
}

# Where the kernel has no header package, BCC finds Debian's by these links: a TC
# program uses only the stable interface, so that their version does not matter.
link_headers() {
	local modules arch_headers common_headers
	modules="/lib/modules/$(uname -r)"
	[ ! -e "$modules/build" ] || return 0
	arch_headers=$(find /usr/src -maxdepth 1 -name "linux-headers-*-$(dpkg --print-architecture)" | sort -V | tail -n 1)
	[ -n "$arch_headers" ] || return 0
	common_headers="${arch_headers%-*}-common"
	as_root mkdir -p "$modules"
	as_root ln -s "$arch_headers" "$modules/build"
	[ -e "$modules/source" ] || as_root ln -s "$common_headers" "$modules/source"
}

# BCC's module belongs to Debian's own Python, so the environment is made from that.
make_environment() {
	[ -x .venv/bin/python ] || /usr/bin/python3 -m venv --system-site-packages .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
}

install_packages
link_headers
make -s -C kern
make_environment
