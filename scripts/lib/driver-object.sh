# Builds the Rust half of the Linux driver, kserv/linux/model, as one object that the kernel's make can link: no kernel version is in it.
# To be sourced by bash after tool.sh.
# shellcheck shell=bash

# Most bytes of stack that one of its functions may take: the kernel's stack has 16 KiB, and interrupts are off.
driver_object_frame=1024

# The object at OBJECT (a name that ends in _shipped is what Kbuild takes as it is), made anew only when something changed.
build_driver_object() { # OBJECT
    local object=$1 header=$root/kserv/linux/include/kserv_model.h build=$root/target/driver/model library name roots=()
    library=$build/aarch64-unknown-none-softfloat/release/libkserv_linux_model.a
    # Kernel modules are relocated when they are loaded; the kernel has no unwinder for us, but it walks frame pointers.
    # Made fast, not small, as the mini host is: every exit of every VM goes through it.
    (cd "$root" && CARGO_PROFILE_RELEASE_OPT_LEVEL=3 RUSTFLAGS="-Crelocation-model=static -Cforce-frame-pointers=yes \
        ${for_a53[*]}" \
        no_input cargo build --quiet --release --target aarch64-unknown-none-softfloat --package kserv-linux-model --target-dir "$build")
    if [ "$object" -nt "$library" ] && [ "$object" -nt "$header" ] && [ "$object" -nt "${BASH_SOURCE[0]}" ]; then return 0; fi
    mapfile -t roots < <(driver_object_functions "$header")
    mkdir -p "$(dirname "$object")"
    # Nothing half made stays, whichever step fails. The interface is all that the rest of the module sees; memcpy and the like are its own.
    aarch64-linux-gnu-ld -r --gc-sections "${roots[@]/#/--undefined=}" -o "$object.$$" "$library" &&
        aarch64-linux-gnu-objcopy --strip-debug --wildcard --keep-global-symbol='kserv_*' -R .llvmbc -R .llvmcmd -R .eh_frame \
            -R .comment -R '.note*' "$object.$$" &&
        check_driver_object "$object.$$" "$header" || { rm -f "$object.$$"; return 1; }
    mv "$object.$$" "$object"
}

# The functions that the header asks of the object.
driver_object_functions() { # HEADER
    grep -oE '\bkserv_[a-z0-9_]+\(' "$1" | tr -d '(' | sort -u | grep -vx kserv_model_panic
}

# Whether a kernel can take the object: all functions of the header and nothing more of C's than kserv_model_panic, no floating point, small frames.
check_driver_object() { # OBJECT HEADER
    local object=$1 wrong instructions
    wrong=$(aarch64-linux-gnu-nm --undefined-only --format=just-symbols "$object" | grep -vx kserv_model_panic || true)
    [ -z "$wrong" ] || { echo "${0##*/}: the driver's object needs what no kernel gives it: ${wrong//$'\n'/ }" >&2; return 1; }
    wrong=$(driver_object_functions "$2" | comm -23 - <(aarch64-linux-gnu-nm --defined-only -g --format=just-symbols "$object" | sort))
    [ -z "$wrong" ] || { echo "${0##*/}: the driver's object lacks ${wrong//$'\n'/ }" >&2; return 1; }
    instructions=$(driver_object_instructions "$object")
    # The operand of a branch is an address, which may look like a register's name.
    wrong=$(sed -E '/^(b|bl|b\.[a-z]+|cbn?z|tbn?z|adrp?)\t/d' <<<"$instructions" | grep -E '\b[vqdshb][0-9]+\b' || true)
    [ -z "$wrong" ] || { echo "${0##*/}: the driver's object uses floating-point registers: ${wrong%%$'\n'*}" >&2; return 1; }
    wrong=$(sed -nE 's/^sub\tsp, sp, #(0x[0-9a-f]+)(, lsl #12)?.*/\1\2/p' <<<"$instructions" | while IFS=, read -r size shift; do
        if [ -n "$shift" ] || [ $((size)) -gt $driver_object_frame ]; then echo "$size$shift"; fi
    done)
    [ -z "$wrong" ] || { echo "${0##*/}: a function of the driver's object takes ${wrong%%$'\n'*} bytes of stack, more than $driver_object_frame" >&2; return 1; }
}

driver_object_instructions() { # OBJECT
    aarch64-linux-gnu-objdump -d --no-show-raw-insn "$1" | sed -nE 's/^ *[0-9a-f]+:\t([^<]*).*/\1/p' | sed 's,//.*,,'
}
