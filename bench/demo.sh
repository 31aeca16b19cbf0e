#!/usr/bin/env bash
# Real traffic between two network namespaces, captured on one side, watched on the other.
#
#   ringcast-host 10.77.0.1                     ringcast-desk 10.77.0.2
#   clients, sniffer -i wire  ===== veth =====  servers, relay, viewer | tshark
#
# The sniffer's own connection, over TLS, crosses the very wire that it captures, and is left out.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=PATH,CARGO_TARGET_DIR "$0" "$@"
fi

bin=${RINGCAST_BIN:-${CARGO_TARGET_DIR:-target}/release}
out=${DEMO_OUT:-demo-out}
host=ringcast-host desk=ringcast-desk
mkdir -p "$out"

on_host() { ip netns exec "$host" "$@"; }
on_desk() { ip netns exec "$desk" "$@"; }

clean_up() {
  trap - EXIT INT TERM
  for namespace in "$host" "$desk"; do
    ip netns pids "$namespace" 2>/dev/null | xargs -r kill 2>/dev/null || true
  done
  sleep 0.2
  for namespace in "$host" "$desk"; do
    ip netns pids "$namespace" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "$namespace" 2>/dev/null || true
  done
  rm -rf "$www" "${keys%/keys}"
}
www=$(mktemp -d) keys=$(mktemp -d)/keys
trap clean_up EXIT
trap 'exit 130' INT TERM

# Waits until a command succeeds.
await() {
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "demo: gave up waiting for: $*" >&2
  exit 1
}

echo "== two namespaces and a wire between them"
for namespace in "$host" "$desk"; do
  ip netns del "$namespace" 2>/dev/null || true
  ip netns add "$namespace"
  ip -n "$namespace" link set lo up
done
ip link add wire netns "$host" type veth peer name wire netns "$desk"
ip -n "$host" addr add 10.77.0.1/24 dev wire
ip -n "$desk" addr add 10.77.0.2/24 dev wire
ip -n "$host" link set wire up
ip -n "$desk" link set wire up

echo "== servers: HTTP and DNS"
head -c 32M /dev/urandom >"$www/bulk.bin"
echo '<h1>Ringcast</h1>' >"$www/index.html"
on_desk python3 -m http.server --bind 10.77.0.2 --directory "$www" 80 >"$out/http.log" 2>&1 &
on_desk dnsmasq --keep-in-foreground --no-resolv --no-hosts --bind-interfaces --listen-address=10.77.0.2 \
  --address=/ringcast.example/10.77.0.2 --user=root --pid-file= >"$out/dns.log" 2>&1 &

echo "== certificates and tokens"
on_desk "$bin/relay" init "$keys" --host 10.77.0.2 2>"$out/init.log" >"$out/init.txt"
relay=(--relay wss://10.77.0.2:9440 --ca "$keys/ca.pem")

echo "== relay, viewer, sniffer"
on_desk "$bin/relay" --listen 10.77.0.2:9440 --cert "$keys/relay.pem" --key "$keys/relay-key.pem" \
  --tokens "$keys/tokens.toml" 2>"$out/relay.log" &
await on_desk "$bin/viewer" "${relay[@]}" --token-file "$keys/viewer.token" --list
on_desk "$bin/viewer" "${relay[@]}" --token-file "$keys/viewer.token" --until-end 2>"$out/viewer.log" |
  tee "$out/demo.pcapng" |
  tshark -l -n -r - -Y 'http.request || http.response || dns || icmp || arp' 2>/dev/null |
  tee "$out/decoded.txt" &
watching=$!
on_host "$bin/sniffer" -i wire "${relay[@]}" --token-file "$keys/sniffer.token" --name host 2>"$out/sniffer.log" &
sniffer=$!
listed() {
  on_desk "$bin/viewer" "${relay[@]}" --token-file "$keys/viewer.token" --list --json | grep -q '"viewers": *1'
}
await listed

echo "== traffic: ping, DNS, HTTP, a bulk transfer"
on_host ping -q -c 5 -i 0.2 10.77.0.2 >/dev/null
for name in www.ringcast.example mail.ringcast.example; do
  on_host dig +short @10.77.0.2 "$name" >/dev/null
done
on_host curl -s http://10.77.0.2/index.html http://10.77.0.2/missing.html -o /dev/null -o /dev/null
on_host curl -s http://10.77.0.2/bulk.bin -o /dev/null
on_host ping -q -c 3 -i 0.2 10.77.0.2 >/dev/null

kill -TERM "$(ip netns pids "$host" | while read -r pid; do
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = sniffer ] && echo "$pid"
done)"
wait "$sniffer"
wait "$watching"

echo
echo "== what the sniffer says"
cat "$out/sniffer.log"
echo "== what the viewer says"
cat "$out/viewer.log"
echo "== what is in the file"
capinfos -c -d -u "$out/demo.pcapng" 2>/dev/null
captured=$(sed -n 's/^interface wire: .* \([0-9]*\) captured.*/\1/p' "$out/sniffer.log")
written=$(capinfos -T -r -c "$out/demo.pcapng" 2>/dev/null | cut -f 2)
own=$(tshark -n -r "$out/demo.pcapng" -Y 'tcp.port == 9440' 2>/dev/null | wc -l)
decoded=$(wc -l <"$out/decoded.txt")
{
  echo "captured by the sniffer: $captured packets"
  echo "in $out/demo.pcapng:  $written packets"
  echo "of the sniffer's own connection: $own packets"
  echo "decoded live: $decoded lines"
} | tee "$out/summary.txt"
if [ "$captured" != "$written" ] || [ "$own" -ne 0 ] || [ "$decoded" -lt 10 ]; then
  echo "demo: the counts do not agree" >&2
  exit 1
fi
echo "The counts agree. Look at it: wireshark $out/demo.pcapng"
