#!/usr/bin/env bash
# Fuzzes every decoder and the protocol core: bench/fuzz.sh [SECONDS [TARGET...]], by default 60 s each.
# What is found stands in fuzz/artifacts; the corpora grow in fuzz/corpus. Neither belongs to git.
#
# Without a sanitizer, so that a stable toolchain will do: the code is safe Rust, whose faults are
# panics, hangs and memory. RINGCAST_FUZZ_SANITIZER=address builds with one (needs RUSTC_BOOTSTRAP=1).
set -euo pipefail

version=0.13.2
seconds=${1:-60}
shift || true
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
all=(access block bpf capture_file config downlink handshake hub journal message pcapng ring totals uplink websocket)
targets=("${@:-${all[@]}}")
build=(-s "${RINGCAST_FUZZ_SANITIZER:-none}" --target-dir target/fuzz)

if ! cargo fuzz --version 2>/dev/null | grep -q " $version\$"; then
  echo "fuzz: installing cargo-fuzz $version"
  cargo install cargo-fuzz --version "$version" --locked --quiet
fi
began=$SECONDS
cargo fuzz build "${build[@]}"
echo "fuzz: built in $((SECONDS - began)) s"

# The journal's target writes files, many times a second.
scratch=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch
binaries=$(dirname "$(find target/fuzz -path '*/release/seeds' -type f -perm -u+x | head -n 1)")
export RINGCAST_CAPTURES=${RINGCAST_CAPTURES:-$root/../shared/captures}
RINGCAST_FUZZ_CORPUS=$root/fuzz/corpus "$binaries/seeds" 2>"$scratch/seeds.log" || { cat "$scratch/seeds.log" >&2; exit 1; }

failed=()
for target in "${targets[@]}"; do
  artifacts=fuzz/artifacts/$target
  mkdir -p "$artifacts" "fuzz/corpus/$target"
  length=8192
  arguments=(-max_total_time="$seconds" -rss_limit_mb=512 -timeout=10 -print_final_stats=1)
  case $target in
    handshake) length=9000 ;; # over the bound of a request
    ring | config) length=1024 ;;
    totals) length=6000 ;;
    message) arguments+=(-dict=fuzz/json.dict) ;;
    hub | uplink | downlink) length=4096 ;;
  esac
  log=$scratch/$target.log
  if "$binaries/$target" "${arguments[@]}" -max_len="$length" -artifact_prefix="$artifacts/" \
    "fuzz/corpus/$target" >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
    peak=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
    edges=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    printf 'fuzz: %-12s %9s runs, %6s/s, %5s edges, %3s MiB\n' "$target" "$runs" "$rate" "$edges" "$peak"
  else
    failed+=("$target")
    tail -n 40 "$log" >&2
    found=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    echo "fuzz: $target FAILED; to see it again: $binaries/$target ${found:-?}" >&2
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "fuzz: failed: ${failed[*]}" >&2
  exit 1
fi
