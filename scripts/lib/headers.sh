# Headers with which modules for one of the host's kernels are built: Debian's packages of them, or made from the kernel's source.
# To be sourced by bash after debian.sh, tools.sh and host.sh.
# shellcheck shell=bash

have_module_headers() { have_host "$1" && [ -e "$host/$1/headers/package" ]; }

# Headers for exactly the kernel of host:SERIES, laid out so that they work from target/ (see lib/build-module).
get_module_headers() { # SERIES
    local series=$1 release suite version common kbuild arch package dir=$host/$1/headers new=$host/.$1.headers.new
    have_host "$series" || get_host "$series"
    release=$(cat "$host/$series/release")
    suite=$(sed -n 's/^suite //p' "$host/$series/package")
    version=$(sed -n 's/^version //p;T;q' "$host/$series/package")
    arch=$(host_arch)
    debian_suite "$suite" arm64 || exit 1
    rm -rf "$new"
    mkdir -p "$new/tree"
    if ! debian_versions "$suite" arm64 "linux-headers-$release" | grep -qxF "$version"; then
        make_module_headers "$series" "$release" "$suite" "$version" "$new" "which has no package of them"
        return
    fi
    debian_download "$suite" arm64 "linux-headers-$release=$version" "building test modules for the host's kernel $series" || exit 1
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new/tree" --no-same-owner
    deb_facts "$deb" >"$new/package.new"
    common=$(dpkg-deb -f "$deb" Depends | grep -oE 'linux-headers-[^ ,]*-common' | head -n 1)
    kbuild=$(dpkg-deb -f "$deb" Depends | grep -oE 'linux-kbuild-[^ ,]*' | head -n 1)
    # The programs among them run here: they are for this machine's architecture.
    for package in "arm64 $common=$version" "$arch $kbuild=$version"; do
        debian_download "$suite" "${package% *}" "${package#* }" "building test modules for the host's kernel $series" || exit 1
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new/tree" --no-same-owner
        deb_facts "$deb" >>"$new/package.new"
    done
    mv "$new/tree/usr/src" "$new/src"
    mv "$new/tree/usr/lib" "$new/lib" # src/*/scripts leads to ../../lib
    if (find "$new"/lib/linux-kbuild-*/scripts -type f -perm -u+x -exec ldd {} + || true) 2>&1 | grep 'GLIBC_.* not found' >/dev/null; then
        rm -rf "$new"
        mkdir -p "$new/tree"
        make_module_headers "$series" "$release" "$suite" "$version" "$new" "of whose package the programs want a newer C library than this machine's"
        return
    fi
    rm -rf "$new/tree"
    sed -i -e '1i src_folder := $(dir $(realpath $(lastword $(MAKEFILE_LIST))))..' -e 's|/usr/src/|$(src_folder)/|' \
        "$new/src/linux-headers-$release/Makefile"
    # With it kbuild would want pahole, to describe the module's types; nothing here needs them.
    rm -f "$new/src/linux-headers-$release/vmlinux"
    ln -s "src/linux-headers-$release" "$new/build"
    mv "$new/package.new" "$new/package"
    rm -rf "$dir"
    mv "$new" "$dir"
    say "module headers for $release are in target/host/$series/headers (scripts/lib/build-module builds with them)"
}

# The same for a kernel whose headers Debian does not keep, or whose package does not work here: from its source, which Debian keeps as long as the image, and the image's own
# configuration. Debian's own patches are not in it. For kernels without versions of symbols (CONFIG_MODVERSIONS), which need no list of them.
make_module_headers() { # SERIES RELEASE SUITE VERSION FOLDER WHY
    local series=$1 release=$2 suite=$3 version=$4 new=$5 why=$6 top config=$host/$1/config log=module-headers-$1
    ! grep -q '^CONFIG_MODVERSIONS=y' "$config" ||
        die "Debian's $suite has no headers for $release $version (any more) that can be used here: remove target/host/$series to take its newest kernel of $series, or build modules for another series"
    have_cross || get_cross
    have gcc || install_packages "programs that the kernel's build runs" '' gcc libc6-dev
    have bc || install_packages "bc, which the kernel's build runs" '' bc
    debian_source "$suite" linux "$version" "headers of the host's kernel $series, $why" || exit 1
    { echo "name linux (source)"; echo "version $version"; echo "sha256 $(sha256sum "$tarball" | cut -d' ' -f1)"; echo "suite $suite"; } >"$new/package"
    say "making module headers for $release from its source"
    top=linux-${version%%-*}
    mkdir -p "$new/build"
    tar -x -J -f "$tarball" -C "$new/build" --strip-components=1 --no-same-owner \
        "$top"/{Makefile,Kbuild,include,arch/arm64,kernel,scripts,tools/include} || die "$tarball is not what it should be: see above"
    configure_headers "$config" "$new/build"
    # What it would make for programs of the kernel's own build is left out by options that its makefiles only see.
    quietly "$log" make -s -C "$new/build" ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- CC=aarch64-linux-gnu-gcc KERNELRELEASE="$release" \
        CONFIG_RUST= CONFIG_DTC= CONFIG_MODULE_SIG_FORMAT= CONFIG_SYSTEM_EXTRA_CERTIFICATE= CONFIG_SECURITY_SELINUX= prepare0 || exit 1
    (
        cd "$new/build" || exit 1
        # How the kernel wants its modules linked: the one file that `make prepare0` leaves to later.
        quietly "$log" aarch64-linux-gnu-gcc -E -P -nostdinc -x assembler-with-cpp -D__ASSEMBLY__ -DLINKER_SCRIPT \
            -I{arch/arm64/,}include -Iarch/arm64/include/generated -I{arch/arm64/,}include/uapi -include include/linux/kconfig.h \
            -o scripts/module.lds scripts/module.lds.S || exit 1
        # Which names there are, so that a wrong one is noticed here: every word of the image that could be one. The kernel looks again.
        tr '\0' '\n' <"$host/$series/Image" | LC_ALL=C grep -axE '[A-Za-z_][A-Za-z0-9_]{2,}' | LC_ALL=C sort -u |
            awk '{ printf "0x00000000\t%s\tvmlinux\tEXPORT_SYMBOL_GPL\t\n", $1 }' >Module.symvers
        find . \( -name '*.c' -o -name '*.S' -o -name '*.rs' -o -name '*.dts*' \) -not -path './scripts/*' -delete
    ) || exit 1
    rm -rf "$new/tree" "${host:?}/$series/headers"
    mv "$new" "$host/$series/headers"
    say "module headers for $release, made from its source, are in target/host/$series/headers"
}

# The kernel's configuration CONFIG as its makefiles and its sources read it in FOLDER, to the letter: asking the kernel's own program would answer for
# this machine's compiler.
configure_headers() { # CONFIG FOLDER
    local config=$2/.config include=$2/include
    mkdir -p "$include/config" "$include/generated"
    # But for this: gcc before 14 leaves cold functions without their alignment, on which the kernel's tracer relies, unless they are not called cold.
    if has_function_alignment; then cp "$1" "$config"; else sed -E '/^CONFIG_CC_HAS_(MIN|SANE)_FUNCTION_ALIGNMENT=/d' "$1" >"$config"; fi
    # Debian takes the salt out of what it ships, and it says nothing to a module.
    { sed -nE 's/^(CONFIG_[A-Za-z0-9_]+)="(.*)"$/\1=\2/; /^CONFIG_/p' "$config"; echo 'CONFIG_BUILD_SALT='; } >"$include/config/auto.conf"
    {
        sed -nE 's/^(CONFIG_[A-Za-z0-9_]+)=y$/#define \1 1/p; s/^(CONFIG_[A-Za-z0-9_]+)=m$/#define \1_MODULE 1/p; s/^(CONFIG_[A-Za-z0-9_]+)=([-0-9"].*)$/#define \1 \2/p' "$config"
        grep -q '^CONFIG_BUILD_SALT=' "$config" || echo '#define CONFIG_BUILD_SALT ""'
    } >"$include/generated/autoconf.h"
    # Newer than the rest, or it would be asked after all.
    touch "$include/config/auto.conf.cmd" "$include/generated/rustc_cfg"
}
