# What every script here starts with: where the project is, how to speak, how to become root.
# To be sourced by bash; sets `root` (the project) and `target` (everything made or downloaded).
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=$root/target
downloads=$target/downloads
me=${0##*/}

# Messages go to standard error: standard output belongs to the console of whatever is run.
say() { printf '%s: %s\n' "$me" "$*" >&2; }
die() { say "$*"; exit 1; }

have() { command -v "$1" >/dev/null 2>&1; }

# depmod and the like are not on everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin
interactive=no
if [ -t 0 ] && [ -t 2 ]; then interactive=yes; fi

# sudo's PATH has not the place where rustup puts cargo.
if ! command -v cargo >/dev/null && [ -x "${HOME:-}/.cargo/bin/cargo" ]; then export PATH="$HOME/.cargo/bin:$PATH"; fi

# Stops unless as_root will work: WHAT is to be done as root.
need_root() {
    [ "$(id -u)" != 0 ] || return 0
    have sudo || die "root is needed to $1, and there is no sudo here: do that as root, then start again"
    [ $interactive = yes ] || sudo -n true 2>/dev/null ||
        die "root is needed to $1, and sudo wants a password: do that yourself or start this from a terminal"
}

# Runs a command as root: directly, or with sudo (which asks for its password only where somebody can answer).
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif [ $interactive = yes ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# Runs a long step silently; its output goes to target/setup/log/NAME, whose end is shown if it fails.
quietly() { # NAME COMMAND...
    local log=$target/setup/log/$1
    shift
    mkdir -p "${log%/*}"
    "$@" </dev/null >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        say "that failed: ${*:1:4} ... (all of its output: ${log#"$root"/})"
        return 1
    }
}
