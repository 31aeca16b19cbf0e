#!/usr/bin/env bash
# Runs Autobahn's public conformance cases of WebSocket, as PyPI's kosoku has them, against an echo
# made of our own connection: as a server and as a client. Prints a table of the outcomes and every
# case that is not as the standard asks, and fails then.
#
#   bench/conformance.sh            all cases; compression (12, 13) is not offered: UNIMPLEMENTED
#   bench/conformance.sh --short    without the large messages (9) and compression
#
# Python 3 with venv is needed. CARGO names another cargo.
set -euo pipefail
cd "$(dirname "$0")/.."

KOSOKU=kosoku==0.1.0
excluded=()
case "${1-}" in
  '') ;;
  --short) excluded=('9.*' '12.*' '13.*') ;;
  *) echo "conformance: ${1}: no such option; there is --short" >&2; exit 2 ;;
esac

folder=${CARGO_TARGET_DIR:-target}/conformance
venv=$folder/venv
mkdir -p "$folder"
if ! "$venv/bin/python" -c 'import kosoku' 2>/dev/null; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$KOSOKU"
fi

"${CARGO:-cargo}" build --quiet --locked -p wire --features conformance --example echo
exec "$venv/bin/python" bench/conformance.py \
  "${CARGO_TARGET_DIR:-target}/debug/examples/echo" "${excluded[@]}"
