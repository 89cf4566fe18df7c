# Programs from the system: QEMU, objcopy, the cross compiler. To be sourced by bash after debian.sh and rust.sh.
# shellcheck shell=bash

stamps=$target/setup/stamp

# QEMU. Its version is asked for only when the program has changed.
qemu_program() { command -v "${QEMU:-qemu-system-aarch64}"; }

have_qemu() {
    local program
    program=$(qemu_program) && [ "$(cat "$stamps/qemu" 2>/dev/null)" = "$(stat -Lc '%n %Y %s' "$program")" ]
}

check_qemu() {
    local program version
    program=$(qemu_program) || return 1
    version=$("$program" --version 2>/dev/null | sed -nE 's/.*version ([0-9]+)\..*/\1/p;q') || return 1
    [ "${version:-0}" -ge 9 ] && grep -q '^raspi4b ' <<<"$("$program" -M help 2>/dev/null)" || return 1
    mkdir -p "$stamps"
    stat -Lc '%n %Y %s' "$program" >"$stamps/qemu"
}

get_qemu() {
    if check_qemu; then return 0; fi
    [ -z "${QEMU:-}" ] || die "QEMU=$QEMU is not a QEMU 9 or newer with the machine raspi4b: name another one, or unset it and start again"
    local suite='' why='QEMU 9 or newer with the machine raspi4b'
    if [ "$(host_codename)" = bookworm ]; then suite=bookworm-backports; fi
    install_packages "$why" "$suite" qemu-system-arm
    hash -r
    check_qemu || die "$why is needed; apt brought $(qemu-system-aarch64 --version 2>/dev/null | head -n 1 || echo none): install a newer one and name it in QEMU=, then start again"
}

# objcopy for arm64 ELF files: LLVM's from the system, or the one that rustup's component llvm-tools brings.
# Sets `objcopy` to the command (an array).
find_objcopy() {
    local program
    objcopy=()
    if have llvm-objcopy; then
        objcopy=(llvm-objcopy)
        return
    fi
    for program in /usr/lib/llvm-*/bin/llvm-objcopy; do
        if [ -x "$program" ]; then objcopy=("$program"); fi
    done
    [ ${#objcopy[@]} = 0 ] || return 0
    local sysroot
    sysroot=$(rust_sysroot) || return 1
    for program in "$sysroot"/lib/rustlib/*/bin/{llvm,rust}-objcopy; do
        if [ -x "$program" ]; then objcopy=(env "LD_LIBRARY_PATH=$sysroot/lib" "$program"); fi
    done
    [ ${#objcopy[@]} != 0 ]
}

have_objcopy() { find_objcopy; }
get_objcopy() {
    install_packages "llvm-objcopy, for the core's flat image" '' llvm
    find_objcopy || die "llvm-objcopy is needed for the core's flat image and apt's package llvm has none: put one on PATH, then start again"
}

# The cross compiler, for programs in the host's initrd and for test modules.
have_cross() {
    have aarch64-linux-gnu-gcc && have make && [ -e "$(aarch64-linux-gnu-gcc -print-file-name=libc.a)" ]
}
get_cross() {
    local packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross make)
    if [ "$(host_arch)" = arm64 ]; then packages=(gcc libc6-dev make); fi
    install_packages "test programs and modules for arm64" '' "${packages[@]}"
    hash -r
    have_cross || die "apt installed ${packages[*]}, but there is no aarch64-linux-gnu-gcc with a static C library: install one, then start again"
}

# Coq, for the proofs about the model, and the OCaml compiler that it brings, for the program extracted from it.
have_coq() { have coqc && have ocamlopt; }
get_coq() {
    install_packages "Coq and OCaml, for proofs/" '' coq
    hash -r
    have_coq || die "apt installed coq, but there is no coqc with ocamlopt: put them on PATH, then start again"
}

# Whether the cross compiler aligns every function as it is told: gcc 14.
has_function_alignment() { aarch64-linux-gnu-gcc -fmin-function-alignment=8 -E -x c /dev/null >/dev/null 2>&1; }
