#!/usr/bin/env bash
# What the spool does: bench/spool.sh [DIRECTORY], by default target/spool-bench, on the disk to be measured.
#
#   1. blocks through the journal beside dd oflag=direct bs=1M, turn about
#   2. no relay: frames of 1514 random bytes flat out, with and without LZ4; what is lost, and where
#   3. the relay away for AWAY seconds, then back, the uplink capped at RATE_MBIT, live traffic a quarter of that: how much
#      of the rest the backlog gets
#
# Needs root. Core 0 generates, core 1 does all else. ROUNDS, SECONDS_EACH, AWAY, RATE_MBIT and JSON (a file that gets part
# 1) can be set. RINGCAST_BIN: programs that are there already.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=PATH,CARGO_TARGET_DIR,CARGO,ROUNDS,SECONDS_EACH,AWAY,RATE_MBIT,JSON,RINGCAST_BIN "$0" "$@"
fi
bin=${RINGCAST_BIN:-${CARGO_TARGET_DIR:-target}/release}
if [ -z "${RINGCAST_BIN:-}" ]; then
  bench/setup.sh
  "${CARGO:-cargo}" build --release --locked -q -p bench -p sniffer -p relay -p viewer
fi
directory=${1:-${CARGO_TARGET_DIR:-target}/spool-bench}
rounds=${ROUNDS:-7} seconds=${SECONDS_EACH:-5} away=${AWAY:-12} rate=${RATE_MBIT:-200}
near=rcb-spool-cap-$$ far=rcb-spool-gen-$$
logs=$(mktemp -d)
mkdir -p "$directory"

clean_up() {
  trap - EXIT INT TERM
  for namespace in "$near" "$far"; do
    ip netns pids "$namespace" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "$namespace" 2>/dev/null || true
  done
  rm -rf "$logs" "$directory/away" "$directory/drain"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

on_near() { ip netns exec "$near" taskset -c 1 "$@"; }
generate() {
  ip netns exec "$far" "$bin/generate" --interface gen --bypass --core 0 --size 1514 --payload random "$@"
}
# Waits until a file says something.
await_said() {
  for _ in $(seq 100); do
    if grep -q "$2" "$1" 2>/dev/null; then return 0; fi
    sleep 0.1
  done
  echo "spool: gave up waiting for '$2' in:" >&2
  cat "$1" >&2
  exit 1
}
# Ends a program that runs in the near namespace, by its name, and waits for it.
end_near() {
  for pid in $(ip netns pids "$near"); do
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]; then
      kill "-${2:-TERM}" "$pid"
      tail --pid="$pid" -f /dev/null
    fi
  done
}

if [ "$rounds" -gt 0 ]; then
  echo "== 1. blocks to disk, beside dd"
  "$bin/spool" --directory "$directory" --rounds "$rounds" ${JSON:+--json "$JSON"}
fi

for namespace in "$near" "$far"; do
  ip netns add "$namespace"
  ip -n "$namespace" link set lo up
  ip netns exec "$namespace" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 2>/dev/null || true
done
ip link add gen netns "$far" type veth peer name cap netns "$near"
ip -n "$far" link set gen up
ip -n "$near" link set cap up
sleep 1

echo "== 2. no relay: 1514 bytes, random, flat out for $seconds s (veth)"
for compression in none lz4; do
  on_near "$bin/sniffer" -i cap -f udp --name bench --compression "$compression" \
    --spool "$directory/away" --spool-size 40GiB 2>"$logs/away" &
  await_said "$logs/away" 'capture goes on'
  sent=$(generate --seconds "$seconds")
  end_near sniffer
  wait
  echo "compression $compression: generated $sent"
  grep -E 'interface cap|sent:|full|failed|WARN|ERROR' "$logs/away" | sed 's/^/  /'
  rm -rf "$directory/away"
done

pps=$((rate * 1000000 / 8 / 4 / 1560))
echo "== 3. relay away for $away s, then back: --rate ${rate}Mbit, live $pps packets of 1514 bytes a second (veth, loopback)"
relay() { on_near "$bin/relay" --listen 127.0.0.1:9440 2>"$logs/relay" & await_said "$logs/relay" 'listening on'; }
relay
on_near "$bin/viewer" -w /dev/null 2>"$logs/viewer" &
on_near "$bin/sniffer" -i cap -f udp --name bench --rate "${rate}Mbit" --spool "$directory/drain" 2>"$logs/sniffer" &
await_said "$logs/sniffer" 'connected'
generate --rate "$pps" --seconds $((away + 22)) >"$logs/generated" &
generating=$!
sleep 2
end_near relay KILL
sleep "$away"
relay
for _ in $(seq 180); do
  # What the sniffer's TCP has sent: of the connections to the relay, the one that sends.
  sent=$(ip netns exec "$near" ss -tniH dst 127.0.0.1:9440 | sed -n 's/.*bytes_sent:\([0-9]*\).*/\1/p' | sort -n | tail -1)
  echo "$(date +%s.%N) ${sent:-0}"
  sleep 0.1
done >"$logs/samples"
wait "$generating"
end_near sniffer
end_near viewer
end_near relay
python3 - "$logs/samples" "$rate" <<'PYTHON'
import sys

rows = [(float(at), int(sent)) for at, sent in (line.split() for line in open(sys.argv[1]))]
rate = int(sys.argv[2]) * 1e6 / 8
# From the first 2 MB after the return to where a whole second brings less than half the cap.
begin = next(i for i, (_, sent) in enumerate(rows) if sent >= 2_000_000)
end = begin
while end + 10 < len(rows):
    (t0, b0), (t1, b1) = rows[end], rows[end + 10]
    if (b1 - b0) / (t1 - t0) < rate / 2:
        break
    end += 1
else:
    sys.exit("the backlog was not drained while it was watched")
(t0, b0), (t1, b1) = rows[begin], rows[end]
later = rows[end + 10:]
live = (later[-1][1] - later[0][1]) / (later[-1][0] - later[0][0])
total = (b1 - b0) / (t1 - t0)
print(f"  {t1 - t0:.1f} s of drain: {total / 1e6:.2f} MB/s sent, live {live / 1e6:.2f} MB/s, cap {rate / 1e6:.2f} MB/s")
print(f"  the backlog got {total - live:.0f} bytes a second, {(total - live) / (rate - live):.2f} of what live left")
PYTHON
grep -E 'interface cap|sent:|WARN|ERROR' "$logs/sniffer" | sed 's/^/  /'
grep -E 'bench:cap' "$logs/viewer" | sed 's/^/  /'
