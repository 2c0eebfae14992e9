#!/bin/sh
# Installs what tests/debian-packages.txt lists and the machine lacks, and what it is told besides,
# when run as root on Debian or Ubuntu. Never fails: each test says itself which program it misses.
set -u
cd "$(dirname "$0")/.."

command -v dpkg-query >/dev/null || exit 0
missing=
for package in $(sed 's/#.*//' tests/debian-packages.txt) "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "Some tests will be skipped; they need: sudo apt install$missing"
    exit 0
fi

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" </dev/null
}
echo "Installing$missing"
apt-get update -qq
# One package that a distribution does not have must not keep the others away.
# shellcheck disable=SC2086
install $missing || for package in $missing; do install "$package"; done
exit 0
