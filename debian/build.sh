#!/usr/bin/env bash
# Makes target/debian/ringcast_VERSION_ARCH.deb of what is built, and has lintian look at it. Times in it are those of the last
# commit (SOURCE_DATE_EPOCH).
set -euo pipefail

cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
"$cargo" deb --version >/dev/null 2>&1 || "$cargo" install cargo-deb --version '^3.8' --locked
if ! command -v lintian >/dev/null; then
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends lintian >/dev/null
fi

systemd/check.sh target/release

# All that is no binary comes from `make install`.
stage=target/package
rm -rf "$stage"
make --no-print-directory -s install DESTDIR="$PWD/$stage" PREFIX=/usr SYSCONFDIR=/etc
# What the programs are made of, under which licence.
for program in sniffer relay viewer; do
  "$cargo" tree --locked -p "$program" -e normal --prefix none --format '{p} {l}'
done | grep -v "($PWD" | sed 's/ (\*)$//' | LC_ALL=C sort -u >"$stage/usr/share/doc/ringcast/crates.txt"

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || dpkg-parsechangelog -l debian/changelog -S Timestamp)}
export SOURCE_DATE_EPOCH
package=$("$cargo" deb -q -p relay --no-build --locked --strip "$@" | tail -n 1)
lintian --fail-on error,warning --suppress-tags-from-file debian/lintian-tags "$package"
sha256sum "$package"
