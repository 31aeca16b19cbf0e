#!/usr/bin/env bash
# What sslscan and testssl.sh say of a relay's TLS, as `relay init` sets it up: fails on any finding
# of LOW or worse that is not in the list of exceptions below.
#
#   bench/tls_check.sh            all that testssl.sh looks at, about a minute
#   bench/tls_check.sh --short    without its list of ciphers and its simulated clients
#
# Installs both (Debian; asks sudo where it must). RELAY names a relay that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."

# Findings of testssl.sh that have no cure, or whose cure would be wrong here. One a line, with why.
exceptions=(
  cert_revocation # No CRL, no OCSP: a private authority has no server for them. The relay's certificate is replaced, a client's is revoked in the access file
  DNS_CAArecord   # CAA binds public authorities. This one is private, and known to nobody but by --ca
  HSTS            # No web site: the port answers WebSocket alone, and the header would bind all other ports of the host as well
)

parts=()
case ${1-} in
  '') ;;
  --short) parts=(--protocols --std --server-preference --fs --server-defaults --headers --vulnerable) ;;
  *) echo "tls-check: $1: no such option; there is --short" >&2; exit 2 ;;
esac

missing=()
command -v sslscan >/dev/null || missing+=(sslscan)
command -v testssl >/dev/null || missing+=(testssl.sh)
command -v python3 >/dev/null || missing+=(python3)
if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  echo "tls-check: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

relay=${RELAY:-}
if [ -z "$relay" ]; then
  "${CARGO:-cargo}" build --quiet --locked -p relay
  relay=${CARGO_TARGET_DIR:-target}/debug/relay
fi
work=$(mktemp -d)
trap '[ -z "${relay_pid-}" ] || kill "$relay_pid" 2>/dev/null; rm -rf "$work"' EXIT
pki=$work/pki
"$relay" init "$pki" --host localhost >"$work/init.log" 2>&1 || { cat "$work/init.log" >&2; exit 1; }
"$relay" --listen 127.0.0.1:0 --cert "$pki/relay.pem" --key "$pki/relay-key.pem" --client-ca "$pki/ca.pem" \
  --tokens "$pki/tokens.toml" 2>"$work/relay.log" &
relay_pid=$!
port=
for _ in $(seq 100); do
  port=$(sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$work/relay.log")
  [ -n "$port" ] && break
  kill -0 "$relay_pid" || break
  sleep 0.1
done
[ -n "$port" ] || { cat "$work/relay.log" >&2; exit 1; }

timeout 120 sslscan --no-colour --xml="$work/sslscan.xml" "localhost:$port" >"$work/sslscan.txt"
sed -n '/SSL\/TLS Protocols/,$p' "$work/sslscan.txt"
status=0
timeout 600 testssl --quiet --color 0 --warnings off --add-ca "$pki/ca.pem" --severity LOW \
  --jsonfile "$work/testssl.json" "${parts[@]}" "localhost:$port" >"$work/testssl.txt" 2>&1 || status=$?
# Its exit status counts what it found; that it came to its end it says itself.
grep -q ' Done ' "$work/testssl.txt" || { cat "$work/testssl.txt" >&2; echo "tls-check: testssl.sh: status $status" >&2; exit 1; }
kill -0 "$relay_pid" || { tail "$work/relay.log" >&2; echo 'tls-check: the relay has ended' >&2; exit 1; }

python3 - "$work/sslscan.xml" "$work/testssl.json" "${exceptions[@]}" <<'PYTHON'
import json, sys, xml.etree.ElementTree as tree
scan = tree.parse(sys.argv[1]).getroot().find('ssltest')
assert scan is not None, 'sslscan did not reach the relay'
wrong = []
enabled = {p.get('type') + p.get('version') for p in scan.iter('protocol') if p.get('enabled') == '1'}
if enabled != {'tls1.2', 'tls1.3'}:
    wrong.append(f'sslscan: protocols {sorted(enabled)}')
for one in scan.iter('renegotiation'):
    if one.get('supported') == '1' and one.get('secure') != '1':
        wrong.append('sslscan: renegotiation that is not secure')
wrong += ['sslscan: compression' for one in scan.iter('compression') if one.get('supported') == '1']
wrong += [f'sslscan: heartbleed in {one.get("sslversion")}' for one in scan.iter('heartbleed') if one.get('vulnerable') == '1']
ciphers = list(scan.iter('cipher'))
wrong += [f'sslscan: {c.get("cipher")} is {c.get("strength")}' for c in ciphers if c.get('strength') not in ('strong', 'acceptable') or int(c.get('bits')) < 128]
keys = list(scan.iter('pk'))
wrong += [f'sslscan: key {k.get("type")} {k.get("bits")}' for k in keys if int(k.get('bits')) < (128 if k.get('type') == 'EC' else 2048)]
if not ciphers or not keys:
    wrong.append('sslscan: no ciphers or no key found')
excepted, seen = set(sys.argv[3:]), []
for one in json.load(open(sys.argv[2])):
    if one['severity'] not in ('LOW', 'MEDIUM', 'HIGH', 'CRITICAL'):
        continue
    text = f'{one["severity"]} {one["id"]}: {one["finding"]}'
    name = one['id'].split(' ')[0]
    (seen if name in excepted else wrong).append(text)
for text in seen:
    print('tls-check: excepted:', text)
for text in wrong:
    print('tls-check: FOUND:', text, file=sys.stderr)
sys.exit(bool(wrong))
PYTHON
echo 'tls-check: sslscan and testssl.sh found nothing that has a cure'
