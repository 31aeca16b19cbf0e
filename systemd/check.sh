#!/usr/bin/env bash
# The units are sound, and systemd gives each an exposure of 2.0 at most. With programs of PATH in the place of those installed.
#
#   systemd/check.sh [PATH]      default: target/debug
set -euo pipefail

cd "$(dirname "$0")/.."
programs=$(realpath "${1:-target/debug}")
if ! command -v systemd-analyze >/dev/null; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd >/dev/null
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for unit in systemd/ringcast-*; do
  sed "s|=/usr/bin/|=$programs/|" "$unit" >"$work/$(basename "${unit/@/@eth0}")"
done
said=$(systemd-analyze verify --man=no "$work"/ringcast-* 2>&1) || { echo "$said" >&2; exit 1; }
[ -z "$said" ] || { echo "$said" >&2; exit 1; }
for unit in "$work"/*.service; do
  exposure=$(systemd-analyze security --offline=true --no-pager "$unit" | sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p')
  awk -v exposure="$exposure" 'BEGIN { exit !(exposure != "" && exposure <= 2.0) }' || {
    echo "$(basename "$unit"): exposure ${exposure:-unknown}, and 2.0 is the most" >&2
    exit 1
  }
  echo "$(basename "$unit"): sound, exposure $exposure"
done
