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
has_promtool=$(command -v promtool || true)
[ ${#missing[@]} -eq 0 ] && [ -n "$has_promtool" ] && exit 0

if ! command -v apt-get >/dev/null; then
  [ -n "$has_promtool" ] || missing+=(promtool)
  echo "setup: please install what brings: ${missing[*]}" >&2
  exit 1
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
# promtool comes with a server that installing would start: the tool alone is taken out of the package.
if [ -z "$has_promtool" ]; then
  echo 'setup: taking promtool out of the package prometheus'
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  (cd "$unpacked" && apt-get download -qq prometheus 2>/dev/null && dpkg-deb -x prometheus_*.deb .)
  "${as_root[@]}" install -m 755 "$unpacked/usr/bin/promtool" /usr/local/bin/promtool
fi
