#!/usr/bin/env bash
# Load-tests the whole chain between two network namespaces: bench/README.md tells how, and
# `bench/replay.sh --help` with what options. Needs root; installs the peers where they are asked for.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=PATH,CARGO_TARGET_DIR,CARGO "$0" "$@"
fi

bin=${RINGCAST_BIN:-${CARGO_TARGET_DIR:-target}/release}
# With RINGCAST_BIN what is there is measured as it is.
if [ -z "${RINGCAST_BIN:-}" ]; then
  bench/setup.sh
  "${CARGO:-cargo}" build --release --locked -q -p bench -p sniffer -p relay -p viewer
fi
needed=(taskset:util-linux ip:iproute2)
case " $* " in
  *" --peers "* | *" --against-a "* | *" --alone "*)
    needed+=(tcpdump:tcpdump socat:socat lz4:lz4 dumpcap:wireshark-common netsniff-ng:netsniff-ng) ;;
esac
missing=()
for pair in "${needed[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "replay: installing ${missing[*]}" >&2
  DEBIAN_FRONTEND=noninteractive apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
exec "$bin/replay" "$@"
