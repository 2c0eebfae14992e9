#!/bin/sh
# Unwinds a real core: sh examples/demo.sh path/to/unwind-core [shipped]
#
# It crashes examples/crash.c here and now where it can, in one of two ways; where it cannot, or is
# told `shipped`, it takes the core that lies beside this script. Those of other architectures it
# takes from there in any case.
set -u

command=$1
examples=$(dirname "$0")
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

bold=; plain=
[ -t 1 ] && { bold=$(printf "\033[1m"); plain=$(printf "\033[0m"); }
say() { printf "\n%s%s%s\n" "$bold" "$*" "$plain"; }

unwind() {
    say "\$ unwind-core $*"
    "$command" "$@"
}

built() {
    command -v cc >/dev/null || { echo "No C compiler here."; return 1; }
    cc -O2 -fomit-frame-pointer -pthread -o "$work/crash" "$examples/crash.c"
}

# The kernel leaves a file where core_pattern names one in the current directory.
crashed() {
    echo "Crashing examples/crash.c, built with cc -O2 -fomit-frame-pointer."
    (cd "$work" && ulimit -c unlimited && exec ./crash) >/dev/null 2>&1
    core=$(find "$work" -name 'core*' | head -n 1)
    [ -n "$core" ]
}

# Where cores are piped to a service, gdb stops the program at its crash and writes one.
dumped() {
    command -v gdb >/dev/null || { echo "The kernel leaves no core here, and there is no gdb."; return 1; }
    echo "The kernel leaves no core here: letting gdb write one."
    core="$work/core"
    env -u DEBUGINFOD_URLS gdb -nx -batch -ex run -ex "generate-core-file $core" "$work/crash" \
        </dev/null >/dev/null 2>&1
    [ -f "$core" ]
}

# Unwinds the cores beside this script, but for that of the architecture $1.
shipped() {
    for archive in "$examples"/*-crash.tar.xz; do
        name=$(basename "$archive" -crash.tar.xz)
        [ "$name" = "$1" ] && continue
        say "The same program on $name:"
        # Python unpacks it: not every machine has xz.
        "$(dirname "$command")/python" -W ignore -m tarfile -e "$archive" "$work/$name" || return
        unwind --sysroot "$work/$name" "$work/$name/core" || return
    done
}

native=$(uname -m)
[ "$native" = aarch64 ] && native=arm64

if [ "${2-}" != shipped ] && built && { crashed || dumped; }; then
    unwind "$core" || exit
    shipped "$native" || exit
else
    echo "Taking the cores that are shipped in examples/."
    shipped none || exit
fi
say "Now yours: $command CORE, and --explain says how each frame was found."
