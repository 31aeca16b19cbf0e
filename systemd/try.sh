#!/usr/bin/env bash
# Tries the package as a new operator would, following the README: installs it in a clean Debian that systemd boots in a
# container of its own, and goes from there to packets on the desk, restarts, kills, hangs, an upgrade, and purging.
#
#   systemd/try.sh [PACKAGE]      default: target/debian/ringcast_*.deb, which `make deb` makes
#
# As root, with Debian's archive at hand (DEBIAN_ARCHIVE, else debootstrap's own); three minutes, 400 MB below RINGCAST_TRY_DIR
# (default /var/tmp), removed at the end. RINGCAST_TRY_BASE names a root that debootstrap made before, to be copied instead.
# What is captured and sent stays inside the container: it has no network but its own.
set -euo pipefail

cd "$(dirname "$0")/.."
package=$(realpath "${1:-$(echo target/debian/ringcast_*.deb)}")
[ "$(id -u)" -eq 0 ] || { echo 'try: a container takes root' >&2; exit 1; }
bench/setup.sh
needed=(debootstrap:debootstrap systemd-nspawn:systemd-container nsenter:util-linux)
missing=()
for pair in "${needed[@]}"; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

work=$(mktemp -d "${RINGCAST_TRY_DIR:-/var/tmp}/ringcast-try.XXXXXX")
root=$work/root
container=
end() {
  local status=$?
  set +e
  if [ -n "$container" ]; then
    if [ "$status" -ne 0 ]; then
      inside journalctl --no-pager -q -n 60 -u 'ringcast*' >&2
    fi
    kill -RTMIN+4 "$leader" 2>/dev/null # poweroff.target
    for _ in $(seq 300); do kill -0 "$container" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$container" 2>/dev/null
  fi
  rm -rf --one-file-system "$work"
  [ "$status" -eq 0 ] || echo "try: failed in: $step" >&2
}
trap end EXIT

step='making the root'
count=0
# Begins a step, which is told when it is over.
begin() { step=$1; }
well() { count=$((count + 1)); printf 'well: %s\n' "$step"; }
no() { echo "try: $step: $*" >&2; exit 1; }
# Runs a command in the container, or in the network of the desk inside it.
inside() { nsenter -t "$leader" -a -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"; }
desk() { inside ip netns exec desk "$@"; }
property() { inside systemctl show -P "$2" "$1"; }
# Waits until a command succeeds, SECONDS at most.
await() {
  local seconds=$1 deadline
  shift
  deadline=$((SECONDS + seconds))
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || no "not within $seconds s: $*"
    sleep 0.2
  done
}
is() { [ "$(property "$1" "$2")" = "$3" ]; }
is_other() { local now; now=$(property "$1" "$2"); [ "$now" != "$3" ] && [ "$now" != 0 ]; }
logged() { [ -n "$(inside journalctl -q --no-pager -u "$1" -n 1 -g "$2")" ]; }

if [ -n "${RINGCAST_TRY_BASE:-}" ]; then
  cp -a "$RINGCAST_TRY_BASE" "$root"
else
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2,iputils-ping,procps,libpcap0.8 \
    bookworm "$root" ${DEBIAN_ARCHIVE:+"$DEBIAN_ARCHIVE"} >"$work/debootstrap.log" || {
    tail "$work/debootstrap.log" >&2
    exit 1
  }
fi
echo capture-host >"$root/etc/hostname"
echo '127.0.0.1 localhost capture-host
10.78.0.1 relay.example.net' >"$root/etc/hosts"
cp "$package" "$root/root/ringcast.deb"
# The same with a higher version.
dpkg-deb -R "$package" "$work/next"
sed -i 's/^Version: .*/&+next/' "$work/next/DEBIAN/control"
dpkg-deb --root-owner-group -b "$work/next" "$root/root/next.deb" >/dev/null
rm -r "$work/next"

step='booting'
systemd-nspawn --register=no --keep-unit --private-network --resolv-conf=off --timezone=off \
  --system-call-filter="landlock_create_ruleset landlock_add_rule landlock_restrict_self" -q -b -D "$root" -M ringcast-try \
  </dev/null >"$work/console.log" 2>&1 &
container=$!
await_leader() { leader=$(pgrep -P "$container" -x systemd) && [ -n "$leader" ]; }
await 30 await_leader
is_up() { inside systemctl is-system-running 2>/dev/null | grep -xE 'running|degraded' >/dev/null; }
await 60 is_up
well

begin 'installing enables, starts and listens on nothing'
inside apt-get install -y -qq /root/ringcast.deb >"$work/install.log" 2>&1 || { cat "$work/install.log" >&2; exit 1; }
inside id ringcast >/dev/null
[ "$(inside stat -c '%U:%G %a' /etc/ringcast /var/lib/ringcast /etc/credstore | tr '\n' ' ')" = \
  'root:ringcast 750 ringcast:ringcast 750 root:root 700 ' ] || no "$(inside stat -c '%n %U:%G %a' /etc/ringcast /var/lib/ringcast /etc/credstore)"
[ "$(inside systemctl is-enabled ringcast-relay.socket ringcast-relay.service ringcast-sniffer@.service | sort -u)" = disabled ] || no enabled
[ -z "$(inside ss -Hltn 'sport = 9440')" ] || no listening
! inside pgrep -u ringcast || no running
for man in relay sniffer viewer relay-token-add; do inside test -s /usr/share/man/man1/$man.1.gz || no "man page $man"; done
well

begin 'the units are sound, and systemd gives them 2.0 at most'
inside systemd-analyze verify --man=no ringcast-relay.socket ringcast-relay.service ringcast-sniffer@eth0.service
# eth0 is captured: its other end is a network of its own, `far`. The desk comes by another line.
for pair in 'far eth0 10.79.0' 'desk mgmt0 10.78.0'; do
  read -r space device net <<<"$pair"
  inside ip netns add "$space"
  inside ip link add "$device" type veth peer name eth0 netns "$space"
  inside ip address add "$net.1/24" dev "$device"
  inside ip link set "$device" up
  inside ip -n "$space" address add "$net.2/24" dev eth0
  inside ip -n "$space" link set eth0 up
  inside ip -n "$space" link set lo up
done
well

begin "the relay's host, as the README says"
inside relay init /etc/ringcast/keys --host relay.example.net >/dev/null
inside ln -s /etc/ringcast/keys/relay.pem /etc/credstore/ringcast.relay.cert
inside ln -s /etc/ringcast/keys/relay-key.pem /etc/credstore/ringcast.relay.key
inside install -g ringcast -m 640 /etc/ringcast/keys/tokens.toml /etc/ringcast/
inside sh -c 'echo "tokens = \"/etc/ringcast/tokens.toml\"" >>/etc/ringcast/relay.toml'
inside install -d /etc/systemd/system/ringcast-relay.socket.d
inside sh -c 'printf "[Socket]\nListenStream=\nListenStream=0.0.0.0:9440\n" >/etc/systemd/system/ringcast-relay.socket.d/override.conf'
inside systemctl daemon-reload
inside systemctl -q enable --now ringcast-relay.socket
is ringcast-relay.service ActiveState inactive || no 'the relay runs before anybody asks'
well

begin 'the capture host, as the README says'
inside install -m 644 /etc/ringcast/keys/ca.pem /etc/ringcast/ca.pem
inside install -m 600 /etc/ringcast/keys/sniffer.token /etc/credstore/ringcast.sniffer.token-file
inside sh -c 'printf "relay = \"wss://relay.example.net:9440\"\nca = \"/etc/ringcast/ca.pem\"\ncores = [\"0\"]\n" >>/etc/ringcast/sniffer.toml'
inside systemctl -q enable --now ringcast-sniffer@eth0
await 30 logged ringcast-sniffer@eth0 confined
[ "$(inside stat -c '%U %a' /var/lib/ringcast/sniffer-eth0)" = 'ringcast 700' ] || no 'the spool is open'
await 30 inside test -e /var/lib/ringcast/sniffer-eth0/spool
well

viewer=(viewer --relay wss://relay.example.net:9440 --ca /etc/ringcast/keys/ca.pem --token-file)
list() { desk "${viewer[@]}" /etc/ringcast/keys/viewer.token --list; }
begin 'the desk sees every packet'
seen() { list 2>/dev/null | grep eth0 >/dev/null; }
await 30 seen
desk "${viewer[@]}" /etc/ringcast/keys/viewer.token -f icmp -w /root/desk.pcapng -c 1000 --duration 60s 2>"$work/viewer.log" &
watching=$!
subscribed() { logged ringcast-relay "subscription begins"; }
await 30 subscribed
inside ping -q -c 500 -i 0.002 10.79.0.2 >/dev/null
wait "$watching" || no "$(cat "$work/viewer.log")"
for kind in 8 0; do
  frames=$(tshark -r "$root/root/desk.pcapng" -Y "icmp.type == $kind" 2>/dev/null | wc -l)
  [ "$frames" -eq 500 ] || no "$frames of 500 frames of ICMP type $kind"
done
well

begin 'systemd gives what runs 2.0 at most'
for unit in ringcast-relay.service ringcast-sniffer@eth0.service; do
  exposure=$(inside systemd-analyze security --no-pager "$unit" | sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p')
  awk -v exposure="$exposure" 'BEGIN { exit !(exposure != "" && exposure <= 2.0) }' || no "$unit: $exposure"
  step+=", $unit $exposure"
done
well

begin 'keys and tokens are handed over, the environment holds none, the log has levels and no complaint'
for unit in ringcast-relay.service ringcast-sniffer@eth0.service; do
  [ -n "$(inside ls "/run/credentials/$unit")" ] || no "no credentials of $unit"
  ! inside setpriv --reuid=nobody --clear-groups ls "/run/credentials/$unit" 2>/dev/null || no "$unit: others read its credentials"
done
! logged ringcast-relay 'others than its owner' || no 'a credential is taken for an open file'
[ -n "$(inside journalctl -q -p 6..6 -u ringcast-relay -g 'listening on')" ] || no 'levels'
! inside journalctl -q -p 4 -u 'ringcast*' | grep . || no 'it complains'
well

begin 'a spool has one sniffer'
second=$(inside setpriv --reuid=ringcast --regid=ringcast --clear-groups --inh-caps=+net_raw --ambient-caps=+net_raw \
  sniffer -i lo --spool /var/lib/ringcast/sniffer-eth0/spool 2>&1) && no 'two of them'
said=$second; second=$(grep -m 1 /var/lib/ringcast/ <<<"$said") || no "it says: $said"
step+=": $second"
well

begin 'who may come in changes while the relay runs'
inside relay token add soc --role subscribe --tokens /etc/ringcast/tokens.toml --out /root/soc.token >/dev/null 2>&1
inside systemctl reload ringcast-relay
soc() { desk "${viewer[@]}" /root/soc.token --list >/dev/null 2>&1; }
await 10 soc
inside relay token revoke soc --tokens /etc/ringcast/tokens.toml >/dev/null 2>&1
inside systemctl reload ringcast-relay
soc_is_out() { ! soc; }
await 10 soc_is_out
well

# Lists without end, each on a connection of its own, until told to stop. Says how many were served, how many were on a
# connection when its relay ended, which is told and tried again by all but --list, and how many did not get that far.
crowd() {
  local served=0 cut=0 refused=0 said
  while [ ! -e "$work/enough" ]; do
    if said=$(list 2>&1); then
      served=$((served + 1))
    elif grep -qE 'the relay is stopped|the connection ended|reset by peer' <<<"$said"; then
      cut=$((cut + 1))
    else
      refused=$((refused + 1))
      echo "$said" >>"$work/refused.log"
    fi
  done
  echo "$served $cut $refused" >"$work/crowd"
}
nobody_refused() {
  touch "$work/enough"
  wait "$crowd"
  rm "$work/enough"
  read -r served cut refused <"$work/crowd"
  [ "$served" -gt 0 ] && [ "$refused" -eq 0 ] || no "$served served, $refused refused: $(tail -n 3 "$work/refused.log")"
  step+=" ($served served, $cut cut off, 0 refused)"
}
begin 'restarting the relay refuses nobody'
crowd &
crowd=$!
for _ in 1 2 3 4 5; do
  inside systemctl restart ringcast-relay
  await 30 seen
done
nobody_refused
await 30 seen
well

begin 'what is killed comes back'
for unit in ringcast-relay.service ringcast-sniffer@eth0.service; do
  before=$(property "$unit" MainPID)
  inside systemctl kill -s KILL "$unit"
  await 20 is_other "$unit" MainPID "$before"
  await 20 is "$unit" ActiveState active
  [ "$(property "$unit" NRestarts)" -ge 1 ] || no "$unit"
done
await 30 seen
well

begin 'what hangs is ended by the watchdog, and comes back'
for unit in ringcast-relay.service ringcast-sniffer@eth0.service; do
  inside systemctl kill -s STOP --kill-whom=main "$unit"
done
for unit in ringcast-relay.service ringcast-sniffer@eth0.service; do
  await 60 logged "$unit" 'Watchdog timeout'
  await 30 is "$unit" ActiveState active
done
await 30 seen
well

begin 'stopping is an end in order, and the relay comes back with the next that asks'
inside systemctl stop ringcast-sniffer@eth0 # or it would have the relay started anew
inside systemctl stop ringcast-relay.service 2>/dev/null
for unit in ringcast-relay.service ringcast-sniffer@eth0.service; do
  [ "$(property "$unit" Result) $(property "$unit" ActiveState)" = 'success inactive' ] || no "$unit: $(property "$unit" Result)"
done
list >/dev/null || no 'nobody answers'
inside systemctl start ringcast-sniffer@eth0
await 30 seen
well

begin 'an upgrade runs what it brings, and refuses nobody'
relay_before=$(property ringcast-relay.service MainPID)
sniffer_before=$(property ringcast-sniffer@eth0.service MainPID)
crowd &
crowd=$!
inside dpkg -i /root/next.deb >"$work/install.log" 2>&1 || no "$(cat "$work/install.log")"
await 20 is_other ringcast-relay.service MainPID "$relay_before"
await 20 is_other ringcast-sniffer@eth0.service MainPID "$sniffer_before"
nobody_refused
inside grep -q wss:// /etc/ringcast/sniffer.toml || no 'the configuration is lost'
await 30 seen
well

begin 'what cannot run is tried 20 times, and then left'
inside cp /etc/ringcast/sniffer.toml /root/
inside sh -c 'echo "ring-sice = 1" >>/etc/ringcast/sniffer.toml'
inside systemctl restart ringcast-sniffer@eth0 2>/dev/null && no 'it starts'
await 60 is ringcast-sniffer@eth0.service ActiveState failed
logged ringcast-sniffer@eth0 ring-sice || no 'nothing says why'
inside cp /root/sniffer.toml /etc/ringcast/
inside systemctl reset-failed ringcast-sniffer@eth0
inside systemctl start ringcast-sniffer@eth0
well

begin 'removing ends everything, and keeps configuration, keys and spools'
inside dpkg -r ringcast >"$work/install.log" 2>&1 || no "$(cat "$work/install.log")"
! inside pgrep -u ringcast || no running
[ -z "$(inside ss -Hltn 'sport = 9440')" ] || no listening
inside test ! -e /usr/bin/relay
inside test -e /etc/ringcast/relay.toml -a -e /etc/ringcast/keys/ca-key.pem -a -d /var/lib/ringcast/sniffer-eth0
well

begin 'purging leaves nothing but the user'
inside dpkg -P ringcast >"$work/install.log" 2>&1 || no "$(cat "$work/install.log")"
left=$(inside find / -xdev -name '*ringcast*' -not -path '/proc/*' -not -path '/root/*' -not -path '/run/*' -not -path '/etc/systemd/system/ringcast-relay.socket.d*')
[ -z "$left" ] || no "left: $left"
well

echo "try: all $count steps went well"
