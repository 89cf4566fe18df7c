# The library (core, alloc, compiler_builtins) of the core's target. To be sourced by bash after debian.sh.
# shellcheck shell=bash

rust_target=aarch64-unknown-none-softfloat

rust_wanted() { sed -nE 's/^channel *= *"(.*)"/\1/p' "$root/rust-toolchain.toml"; }

# The first call on an ordinary machine makes rustup install the toolchain: that is not left to happen in silence.
rust_sysroot() {
    local toolchain
    toolchain=${RUSTUP_HOME:-${HOME:-}/.rustup}/toolchains/$(rust_wanted)
    if have rustup && [ "${RUSTUP_AUTO_INSTALL:-1}" != 0 ] && ! compgen -G "$toolchain-*" >/dev/null; then
        say "rustup installs Rust $(rust_wanted) (some 100 MB): the version that rust-toolchain.toml asks for"
    fi
    (cd "$root" && rustc --print sysroot 2>/dev/null)
}

# Says which of the three crates are there: all, none or some.
rust_library() { # SYSROOT
    local crate found=0
    for crate in core alloc compiler_builtins; do
        if compgen -G "$1/lib/rustlib/$rust_target/lib/lib$crate-*.rlib" >/dev/null; then
            found=$((found + 1))
        fi
    done
    case $found in 3) echo all ;; 0) echo none ;; *) echo some ;; esac
}

have_rust() {
    have cargo && have rustc || return 1
    local sysroot
    sysroot=$(rust_sysroot) && [ "$(rust_library "$sysroot")" = all ]
}

get_rust() {
    local wanted sysroot version library
    wanted=$(rust_wanted)
    have cargo && have rustc || die "Rust $wanted is needed and cargo or rustc is not on PATH: install rustup from Rust's web site (or Debian's package rustup), then start again"
    sysroot=$(rust_sysroot) || die "rustc does not run here; Rust $wanted is needed ($(cd "$root" && rustc --version 2>&1 | head -n 1)): with rustup, run 'rustup toolchain install $wanted', then start again"
    library=$(rust_library "$sysroot")
    [ "$library" != some ] || die "the Rust library for $rust_target is incomplete: remove $sysroot/lib/rustlib/$rust_target, then start again"
    [ "$library" = none ] || return 0
    if [ "${RUSTUP_AUTO_INSTALL:-1}" != 0 ] && have rustup; then
        say "installing the Rust library for $rust_target with rustup (30 MB): the core is built for it"
        (cd "$root" && quietly rustup rustup target add "$rust_target") ||
            die "rustup cannot install the target $rust_target for Rust $wanted: check the network, then start again"
        return 0
    fi
    version=$(cd "$root" && rustc -vV | sed -n 's/^release: //p')
    build_rust_library "$sysroot" "$version"
}

# Where rustup may download nothing: the same library, built from Debian's copy of its source.
build_rust_library() { # SYSROOT VERSION
    local sysroot=$1 version=$2 package suite=trixie-backports work=$target/setup/rust-library commit
    debian_suite $suite arm64 || exit 1 # the index that the host's kernels need too; rust-src is for every architecture
    package=$(debian_versions $suite arm64 rust-src | grep -m1 -E "^${version//./\\.}[+~-]" || true)
    [ -n "$package" ] || die "Debian's $suite has no rust-src $version to build the library for $rust_target from: let rustup install it (unset RUSTUP_AUTO_INSTALL), then start again"
    debian_download $suite arm64 "rust-src=$package" "source of the Rust library for $rust_target, as rustup may not download here" ||
        exit 1

    say "building the Rust library $version for $rust_target (half a minute, once): the core is built for it"
    rm -rf "$work"
    mkdir -p "$work"
    local top=./usr/src/rustc-$version/library
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work" --strip-components=5 \
        "$top/core" "$top/alloc" "$top/compiler-builtins" "$top/stdarch/crates" "$top/portable-simd/crates"
    # The optional C compiler driver is the only dependency outside the package.
    sed -i -e '/^\[build-dependencies\]/,/^$/d' -e 's/"dep:cc"//' "$work/compiler-builtins/compiler-builtins/Cargo.toml"
    # As std's own "dist" profile, for a target without an operating system.
    cat >"$work/Cargo.toml" <<'EOF'
[workspace]
members = ["alloc"]
exclude = ["compiler-builtins", "stdarch", "portable-simd"]
resolver = "2"
[profile.release]
codegen-units = 1
debug = "line-tables-only"
[profile.release.package.compiler_builtins]
codegen-units = 10000
EOF
    commit=$(cd "$root" && rustc -vV | sed -n 's/^commit-hash: //p')
    (
        cd "$work"
        unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS RUSTC_WRAPPER CARGO_BUILD_TARGET CARGO_BUILD_TARGET_DIR
        export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$work/out
        export RUSTFLAGS="-Zforce-unstable-if-unmarked -Cembed-bitcode=yes -Cforce-frame-pointers=yes --remap-path-prefix=$work=/rustc/$commit/library"
        quietly rust-library cargo build --offline --release --target "$rust_target" -p alloc --features compiler-builtins-mem
    ) || die "the Rust library for $rust_target did not build; with rustup allowed to download (unset RUSTUP_AUTO_INSTALL) it need not"
    install_rust_library "$sysroot" "$work/out/$rust_target/release/deps"
    rm -rf "$work"
}

# Copies the three libraries next to the toolchain's others, by one rename: there is never half of them.
install_rust_library() { # SYSROOT FOLDER
    local sysroot=$1 from=$2 place=$1/lib/rustlib/$rust_target run=as_root
    if [ -w "$sysroot/lib/rustlib" ]; then run=''; fi
    $run mkdir -p "$place"
    $run find "$place" -maxdepth 1 -name '.lib-*' -mmin +60 -exec rm -rf {} + # of a run that was interrupted
    local new=$place/.lib-$$
    $run rm -rf "$new"
    $run mkdir "$new"
    $run cp "$from"/lib{core,alloc,compiler_builtins}-*.rlib "$new"/
    $run chmod -R a+rX "$new"
    if ! $run mv -T "$new" "$place/lib" 2>/dev/null; then
        $run rm -rf "$new" # somebody else was faster, or it failed
        [ "$(rust_library "$sysroot")" = all ] || die "cannot write the Rust library to $place"
    fi
}
