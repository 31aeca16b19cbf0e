#!/usr/bin/env bash
# Counts the instructions of the hot functions by callgrind, and compares them with
# bench/instructions.txt. Fails when one has grown by more than 3 %. With --update it writes that file.
#
# One codegen unit: how the compiler deals a crate out to several moves counts of what has not changed.
# Time is too noisy where machines are shared; instructions are the same in every run. They depend on
# the compiler, so a new one is a reason for --update.
set -euo pipefail

cd "$(dirname "$0")/.."
expected=bench/instructions.txt
tolerance=3
few=2 many=10

if ! command -v valgrind >/dev/null; then
  echo "instructions: installing valgrind" >&2
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends valgrind >/dev/null
fi

# The deframer is reached by this cfg alone, as in the fuzz targets; so it has a target directory of its own.
target=${CARGO_TARGET_DIR:-target}/instructions
RUSTFLAGS="${RUSTFLAGS:-} --cfg fuzzing" CARGO_TARGET_DIR=$target CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
  "${CARGO:-cargo}" build --release --locked -q -p bench --bin instructions

# Instructions of a scenario with so many rounds.
collected() {
  local said
  said=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null "$target/release/instructions" "$1" "$2" 2>&1) || {
    echo "$said" >&2
    return 1
  }
  sed -n 's/.*Collected : *\([0-9]*\).*/\1/p' <<<"$said"
}

failed=0 lines=
printf '%-16s %14s %14s %8s\n' scenario expected now change
for scenario in pack-text pack-random pack-small unpack-text unpack-random unpack-small mask deframe forward; do
  less=$(collected "$scenario" "$few")
  more=$(collected "$scenario" "$many")
  now=$(((more - less) / (many - few)))
  lines+="$scenario $now"$'\n'
  before=$(awk -v name="$scenario" '$1 == name { print $2 }' "$expected" 2>/dev/null || true)
  if [ -z "$before" ]; then
    printf '%-16s %14s %14d\n' "$scenario" - "$now"
    [ "${1:-}" = --update ] || failed=1
    continue
  fi
  change=$(awk -v now="$now" -v before="$before" 'BEGIN { printf "%+.2f", 100 * (now / before - 1) }')
  verdict=
  if awk -v change="$change" -v most="$tolerance" 'BEGIN { exit !(change > most) }'; then
    verdict='  grown'
    failed=1
  elif awk -v change="$change" -v most="$tolerance" 'BEGIN { exit !(change < -most) }'; then
    verdict='  less: keep it by --update'
  fi
  printf '%-16s %14d %14d %7s%%%s\n' "$scenario" "$before" "$now" "$change" "$verdict"
done
if [ "${1:-}" = --update ]; then
  printf '%s' "$lines" >"$expected"
elif [ "$failed" -ne 0 ]; then
  echo "instructions: more than $tolerance % above $expected; if that is meant, say why and use --update" >&2
  exit 1
fi
