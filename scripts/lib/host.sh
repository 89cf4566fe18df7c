# The host's parts from Debian's arm64 packages: kernels, busybox, device tree, U-Boot.
# To be sourced by bash after debian.sh and tools.sh.
# shellcheck shell=bash

host=$target/host

# The suites where a kernel series is, in the order to look.
kernel_suites() { # SERIES
    case $1 in
    6.1) echo bookworm ;;
    6.12) echo bookworm-backports trixie ;;
    6.18) echo trixie-backports ;;
    *) echo trixie-backports trixie bookworm-backports bookworm ;;
    esac
}

have_host() { [ -e "$host/$1/package" ]; }

# Sets suite and package to where the newest kernel of a series is.
find_kernel() { # SERIES
    local series=$1
    for suite in $(kernel_suites "$series"); do
        debian_suite "$suite" arm64 || exit 1
        package=$(debian_names "$suite" arm64 "^linux-image-${series//./\\.}\\.[0-9][^ ]*-arm64\$" |
            sed -E '/-(cloud|rt)-/d' | sort -V | tail -n 1)
        [ -z "$package" ] || return 0
    done
    die "Debian has no arm64 kernel $series in $(kernel_suites "$series"): name a series that it has (6.1 and 6.12 are tested)"
}

get_host() { # SERIES
    local series=$1 suite='' package='' name release new=$host/.$1.new
    [[ $series =~ ^[0-9]+\.[0-9]+$ ]] || die "host:$series: a kernel series such as 6.12 is wanted"
    find_kernel "$series"
    have depmod || install_packages "depmod, which lists what the host's modules need" '' kmod
    release=${package#linux-image-}

    rm -rf "$new"
    mkdir -p "$new/tree"
    # In newer series the kernel's files lie in further packages.
    for name in "$package" $(debian_names "$suite" arm64 "^linux-(base|binary|modules)-${release//[.+]/.}\$"); do
        debian_download "$suite" arm64 "$name" "the host's kernel $series" || exit 1
        deb_facts "$deb" >>"$new/package.new"
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new/tree" --no-same-owner
    done
    echo "suite $suite" >>"$new/package.new"
    local modules image
    # /boot/vmlinuz-RELEASE, later /usr/lib/modules/RELEASE/vmlinuz; the configuration lies beside it.
    image=$(find "$new/tree" \( -name "vmlinuz-$release" -o -path "*/$release/vmlinuz" \) -type f | head -n 1)
    [ "$(dd "if=${image:-/dev/null}" bs=4 skip=14 count=1 status=none | tr -d '\0')" = ARMd ] ||
        die "$package holds no plain arm64 Image: take another series"
    mv "${image/%vmlinuz*/config${image##*vmlinuz}}" "$new/config"
    mv "$image" "$new/Image"
    modules=$(find "$new/tree" -path "*/lib/modules/$release" -type d | head -n 1)
    depmod -b "${modules%/lib/modules/*}" "$release" || die "depmod failed for the modules of $release: see above"
    mv "$modules" "$new/modules"
    echo "$release" >"$new/release"
    rm -rf "$new/tree"
    mv "$new/package.new" "$new/package"
    rm -rf "${host:?}/$series"
    mv "$new" "$host/$series"
    say "host kernel $series: $release is in target/host/$series"
}

# One file of a package, the newest of the first suite that has it.
get_file() { # PACKAGE FILE-IN-IT DESTINATION WHY
    local package=$1 file=$2 to=$3 why=$4 suite
    for suite in trixie bookworm; do
        debian_suite "$suite" arm64 || exit 1
        [ -z "$(debian_names "$suite" arm64 "^$package\$")" ] || break
    done
    debian_download "$suite" arm64 "$package" "$why" || exit 1
    mkdir -p "${to%/*}"
    dpkg-deb --fsys-tarfile "$deb" | tar -x -O --wildcards "$file" >"$to.new"
    [ -s "$to.new" ] || die "$package of $suite has no $file (for $why): the package has changed, scripts/lib/host.sh must follow"
    { deb_facts "$deb"; echo "suite $suite"; } >"$to.package"
    mv "$to.new" "$to"
}

have_busybox() { [ -x "$host/busybox" ]; }
get_busybox() {
    get_file busybox-static '*/bin/busybox' "$host/busybox" "the host's user space"
    chmod +x "$host/busybox"
}

have_uboot() { [ -e "$host/u-boot/qemu_arm64.bin" ]; }
get_uboot() { get_file u-boot-qemu '*/qemu_arm64/u-boot.bin' "$host/u-boot/qemu_arm64.bin" "booting with booti, in tests"; }

have_dkms() { [ -e "$host/dkms" ]; }
get_dkms() { get_file dkms './usr/sbin/dkms' "$host/dkms" "building the driver as an administrator does, in tests"; }

have_rpi_dtb() { [ -e "$host/bcm2711-rpi-4-b.dtb" ]; }
get_rpi_dtb() {
    have_dtbs || get_dtbs
    cp "$host/dtbs/broadcom/bcm2711-rpi-4-b.dtb" "$host/bcm2711-rpi-4-b.dtb.new"
    mv "$host/bcm2711-rpi-4-b.dtb.new" "$host/bcm2711-rpi-4-b.dtb"
}

have_dtbs() { [ -e "$host/dtbs" ]; }
get_dtbs() {
    local suite='' package='' new=$host/.dtbs.new
    find_kernel 6.12
    debian_download "$suite" arm64 "$package" "the device trees of all boards" || exit 1
    rm -rf "$new"
    mkdir -p "$new"
    dpkg-deb --fsys-tarfile "$deb" |
        tar -x -C "$new" --no-same-owner --strip-components=4 --wildcards './usr/lib/linux-image-*/*.dtb' ||
        die "$package of $suite has no device trees in usr/lib/linux-image-*: the package has changed, scripts/lib/host.sh must follow"
    mv "$new" "$host/dtbs"
    say "device trees of all boards that ${package#linux-image-} knows are in target/host/dtbs"
}
