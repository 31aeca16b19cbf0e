#!/usr/bin/env bash
# Runs the whole chain with churn of every part and checks that nothing grows and that the ledger adds
# up: bench/README.md tells how. Needs root.
#   bench/soak.sh [--minutes N] [--seed S] [--report FILE] [--log FILE] [--release]
# The programs are built as for `make test`, with their checks of overflow and state; --release as shipped.
set -euo pipefail

cd "$(dirname "$0")/.."
if [ "$(id -u)" -ne 0 ]; then
  exec sudo --preserve-env=PATH,CARGO_TARGET_DIR,CARGO "$0" "$@"
fi

usage() {
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
minutes=10 seed=1 report='' log='' profile=()
while [ $# -gt 0 ]; do
  case "$1" in
    --release) profile=(--release) && shift && continue ;;
    --minutes | --seed | --report | --log) [ $# -gt 1 ] || usage ;;
    *) usage ;;
  esac
  case "$1" in
    --minutes) minutes=$2 ;;
    --seed) seed=$2 ;;
    --report) report=$(realpath -m "$2") ;;
    --log) log=$(realpath -m "$2") ;;
  esac
  shift 2
done
[[ "$minutes" =~ ^[0-9]+$ && "$seed" =~ ^[0-9]+$ && "$minutes" -gt 0 ]] || usage

bench/setup.sh
cargo=${CARGO:-cargo}
"$cargo" build --workspace --bins --locked -q "${profile[@]}"
"$cargo" test -p tests --test soak --locked -q --no-run "${profile[@]}"
log=${log:-$(mktemp --suffix=.log /tmp/soak-XXXXXX)}
echo "soak: $minutes minutes, seed $seed; what all programs say: $log" >&2
export RINGCAST_REQUIRE_ALL=1 RINGCAST_SOAK_SECONDS=$((minutes * 60)) RINGCAST_SOAK_SEED=$seed
[ -z "$report" ] || export RINGCAST_SOAK_REPORT=$report
status=0
"$cargo" test -p tests --test soak --locked -q "${profile[@]}" -- --nocapture >"$log" 2>&1 || status=$?
sed -n '/^Soak of /,/^\(All is well\.\|WRONG:\)/p' "$log"
if [ "$status" -ne 0 ]; then
  grep -A20 -m1 'panicked at' "$log" >&2 || true
  echo "soak: failed; see $log" >&2
fi
exit "$status"
