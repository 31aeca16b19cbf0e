#!/usr/bin/env bash
# What the relay forwards, beside HAProxy, and what idle connections cost it: bench/README.md tells how,
# and `bench/relay.sh --help` with what options. Needs root for control groups; installs HAProxy.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=PATH,CARGO_TARGET_DIR,CARGO,RINGCAST_BIN "$0" "$@"
fi

bin=${RINGCAST_BIN:-${CARGO_TARGET_DIR:-target}/release}
# With RINGCAST_BIN what is there is measured as it is.
if [ -z "${RINGCAST_BIN:-}" ]; then
  "${CARGO:-cargo}" build --release --locked -q -p bench -p relay
fi
if ! command -v haproxy >/dev/null; then
  echo "relay.sh: installing haproxy" >&2
  DEBIAN_FRONTEND=noninteractive apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends haproxy >/dev/null
fi
ulimit -n 16384
exec "$bin/relay_load" "$@"
