# Builds the core and the development machine's tool. To be sourced by bash, after `root` is set.
# shellcheck shell=bash

# sudo's PATH has not the place where rustup puts cargo.
if ! command -v cargo >/dev/null && [ -x "${HOME:-}/.cargo/bin/cargo" ]; then export PATH="$HOME/.cargo/bin:$PATH"; fi

case $root in
*[[:space:]]*) echo "${0##*/}: the project's folder has a space in its path ($root), which cargo's flags and the kernel's make cannot have: move it" >&2; exit 1 ;;
esac

# The project's own settings build it (.cargo/config.toml, the profiles): what somebody has in the environment for other builds would replace them, and put the
# products where nobody here looks for them.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR CARGO_BUILD_TARGET

# The value of an option among the arguments, both "--name value" and "--name=value"; empty if it is not there.
option_value() { # NAME ARGUMENT...
    local name=$1 value=''
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        "$name") value=${2-} ;;
        "$name="*) value=${1#*=} ;;
        esac
        shift
    done
    printf '%s' "$value"
}

# All values of an option that can be given more than once, one a line.
option_values() { # NAME ARGUMENT...
    local name=$1
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        "$name") printf '%s\n' "${2-}" ;;
        "$name="*) printf '%s\n' "${1#*=}" ;;
        esac
        shift
    done
}

# Whether an argument is among the others.
has_option() { # NAME ARGUMENT...
    local name=$1 argument
    shift
    for argument in "$@"; do
        if [ "$argument" = "$name" ]; then return 0; fi
    done
    return 1
}

# Whether --kernel names a version to be provided, not a file.
is_version() { # TEXT
    [[ $1 =~ ^[0-9]+(\.[0-9]+)+$ ]]
}

# Runs a command that must not eat a script on our standard input. A terminal stays, for sudo's password.
no_input() {
    if [ -t 0 ]; then "$@"; else "$@" </dev/null; fi
}

# The tool, built for this machine.
build_tool() {
    command -v cargo >/dev/null || { echo "${0##*/}: there is no cargo on PATH: scripts/setup rust says what to install" >&2; exit 1; }
    [ -e "$root/target/debug/corevisor-tool" ] || echo "${0##*/}: building the tool (once)" >&2
    (cd "$root" && no_input cargo build --quiet --package corevisor-tool --target-dir "$root/target") || return 1
    tool=$root/target/debug/corevisor-tool
}

# Ends the script if the tool would refuse these arguments, before anything large is installed or built for them.
check_options() { # COMMAND ARGUMENT...
    build_tool
    COREVISOR_ROOT=$root "$tool" --check-only "$@" || exit
}

# The core's flat image, target/image/corevisor.bin.
build_core() {
    build_flat "$root/target" "$root/target/image/corevisor.bin"
}

# The same with the failures that tests ask for, target/test/corevisor-hooks.bin; its ELF is under target/hooks.
build_core_with_hooks() {
    build_flat "$root/target/hooks" "$root/target/test/corevisor-hooks.bin" --features test-hooks
}

# Cortex-A53's erratum 835769: a 64-bit multiply-accumulate right behind a load or store may compute wrong. LLVM keeps them apart if it is asked to. rustc passes the request on
# and warns that it does not know the name, for each crate, at each build; hence no warnings here: scripts/test lint shows all others.
for_a53=(-Ctarget-feature=+fix-cortex-a53-835769 -Awarnings)

build_flat() { # TARGET-DIR FLAT-IMAGE CARGO-ARGUMENT...
    local target=$1 flat=$2 elf=$1/aarch64-unknown-none-softfloat/release/corevisor
    shift 2
    [ -e "$elf" ] || echo "${0##*/}: building the core (once)" >&2
    (cd "$root" && no_input cargo build --quiet --release --target aarch64-unknown-none-softfloat --package corevisor \
        --config "target.aarch64-unknown-none-softfloat.rustflags=[$(printf '"%s",' "${for_a53[@]}")]" --target-dir "$target" "$@") || return 1
    if [ "$flat" -nt "$elf" ]; then return 0; fi
    flat "$elf" "$flat"
}

# The bytes of a program as they are in memory.
flat() { # ELF FLAT-IMAGE
    local elf=$1 flat=$2
    mkdir -p "$(dirname "$flat")"
    (
        . "$root/scripts/lib/common.sh"
        . "$root/scripts/lib/rust.sh"
        . "$root/scripts/lib/tools.sh"
        find_objcopy || { echo "${0##*/}: no llvm-objcopy: scripts/setup objcopy installs it" >&2; exit 1; }
        "${objcopy[@]}" -O binary "$elf" "$flat.$$"
    ) || { rm -f "$flat.$$"; return 1; }
    mv "$flat.$$" "$flat"
}

# The mini host's flat image, target/image/kserv-mini.bin.
build_mini() {
    local target=$root/target/mini flat=$root/target/image/kserv-mini.bin elf
    elf=$target/aarch64-unknown-none-softfloat/release/kserv-mini
    [ -e "$elf" ] || echo "${0##*/}: building the mini host (once)" >&2
    # A static PIE like the core, but linked by a script of its own, and made fast, not small: its size is nobody's concern.
    (cd "$root" && CARGO_PROFILE_RELEASE_OPT_LEVEL=3 CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=false RUSTFLAGS="-Crelocation-model=pie -Cforce-frame-pointers=yes -Clink-arg=-T$root/kserv/mini/linker.ld -Clink-arg=-pie \
        -Clink-arg=-znotext -Clink-arg=--pack-dyn-relocs=relr -Clink-arg=--no-dynamic-linker -Clink-arg=-zmax-page-size=4096 \
        ${for_a53[*]}" \
        no_input cargo build --quiet --release --target aarch64-unknown-none-softfloat --package kserv-mini --target-dir "$target") || return 1
    if [ "$flat" -nt "$elf" ]; then return 0; fi
    flat "$elf" "$flat"
}

# The Linux driver for the host kernel SERIES, target/driver/SERIES/corevisor_kvm.ko.
build_driver() { # SERIES
    no_input "$root/scripts/build-driver" --kernel "$1"
}

# The guests of tests and demo: target/guests/NAME.bin, flat binaries for 0x4008_0000.
build_guests() {
    local dir=$root/target/guests program elf
    [ -e "$dir/hello.bin" ] || echo "${0##*/}: building the guests (once)" >&2
    # Linked by a script of their own, not by the core's, which .cargo/config.toml names.
    (cd "$root" && RUSTFLAGS="-Crelocation-model=static -Clink-arg=-T$root/tests/guests/guest.ld -Clink-arg=--no-dynamic-linker" \
        no_input cargo build --quiet --release --target aarch64-unknown-none-softfloat --package corevisor-guests \
        --target-dir "$dir") || return 1
    for program in "$root"/tests/guests/src/bin/*.rs; do
        program=$(basename "$program" .rs)
        elf=$dir/aarch64-unknown-none-softfloat/release/$program
        if [ "$dir/$program.bin" -nt "$elf" ]; then continue; fi
        flat "$elf" "$dir/$program.bin" || return 1
    done
}
