#!/usr/bin/env bash
# Installs the system packages that building, the tests and the demo use, where they are missing.
set -euo pipefail

# A command that must be there, and Debian's package that brings it.
needed=(
  cc:gcc tshark:tshark capinfos:tshark tcpdump:tcpdump ip:iproute2 ethtool:ethtool ping:iputils-ping
  curl:curl dig:bind9-dnsutils dnsmasq:dnsmasq-base python3:python3 script:bsdutils pkill:procps socat:socat
)
missing=()
for pair in "${needed[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
# libpcap compiles the filters; it is loaded when one is asked for.
ldconfig -p 2>/dev/null | grep -q 'libpcap\.so' || missing+=(libpcap0.8)
# What bench/conformance.sh installs from PyPI goes into an environment of its own.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# The C library's headers come with a compiler only on some systems.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "setup: please install what brings: ${missing[*]}" >&2
  exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
