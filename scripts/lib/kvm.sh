# A Debian host that runs VMs: QEMU for arm64 from Debian, on a disk image of its own.
# To be sourced by bash after debian.sh and host.sh.
# shellcheck shell=bash

kvm_host=$host/kvm
kvm_suite=trixie

have_kvm_host() { [ -e "$kvm_host/package" ]; }

# The packages that PACKAGE needs to run, itself among them, one a line; what is only recommended is left out.
debian_closure() { # SUITE ARCHITECTURE PACKAGE
    debian_suite "$1" "$2" || return 1
    # Nothing is installed in the private state, so what apt would fetch is all that is needed.
    APT_CONFIG=$apt_config apt-get -q -y -s -o Debug::NoLocking=true -o APT::Install-Recommends=false install "$3" 2>/dev/null |
        sed -nE 's/^Inst ([^ ]+) .*/\1/p'
}

# Downloads PACKAGEs into target/downloads, all with one apt, and sets `debs` to their paths. Their hashes are those of the signed
# index when this returns.
debian_download_all() { # SUITE ARCHITECTURE PACKAGE...
    local name hash hashes=() n
    debian_suite "$1" "$2" || return 1
    shift 2
    debs=()
    mkdir -p "$downloads"
    while read -r _ name _ hash _; do
        debs+=("$downloads/$name")
        hashes+=("$hash")
        debian_drop_damaged "$downloads/$name" "$hash"
    done < <(APT_CONFIG=$apt_config apt-get download --print-uris "$@" 2>/dev/null)
    [ ${#debs[@]} = $# ] || { say "apt offers ${#debs[@]} of the $# packages that are wanted"; return 1; }
    (cd "$downloads" && APT_CONFIG=$apt_config apt-get -q download "$@") >"$target/setup/apt/log" 2>&1 ||
        { say "a download failed: $(grep -m1 '^E:' "$target/setup/apt/log")"; return 1; }
    for n in "${!debs[@]}"; do debian_expect_whole "${debs[n]}" "${hashes[n]}" || return 1; done
}

# Downloads PACKAGEs of $kvm_suite, and makes FOLDER/tree of their programs and libraries for arm64, and FOLDER/package of what they are; the rest of a package
# is of no use here.
unpack_all() { # FOLDER PACKAGE...
    local new=$1
    shift
    mkdir -p "$new/tree"
    debian_download_all "$kvm_suite" arm64 "$@" || exit 1
    echo "suite $kvm_suite" >"$new/package"
    for deb in "${debs[@]}"; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new/tree" --no-same-owner --exclude='./usr/share' --exclude='./var' --exclude='./etc'
        { echo; deb_facts "$deb"; } >>"$new/package"
    done
    # Packages differ in whether they name /lib or /usr/lib.
    if [ -d "$new/tree/lib" ]; then cp -a "$new/tree/lib/." "$new/tree/usr/lib/"; fi
}

# The files of TREE that PROGRAM loads: libraries by the names that the ELF files themselves give, and the loader.
elf_closure() { # TREE PROGRAM...
    local tree=$1 libraries='' file name seen=' ' queue=()
    shift
    libraries=$tree/usr/lib/aarch64-linux-gnu
    queue=("$@")
    while [ ${#queue[@]} != 0 ]; do
        file=${queue[0]}
        queue=("${queue[@]:1}")
        echo "$file"
        for name in $(aarch64-linux-gnu-readelf -d "$file" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p'); do
            [[ $seen != *" $name "* ]] || continue
            seen+="$name "
            [ -e "$libraries/$name" ] || die "Debian's ${file##*/} needs $name, which none of its packages brings: scripts/lib/kvm.sh must follow"
            queue+=("$libraries/$name")
        done
    done
}

# target/host/kvm/root.img: an ext4 file system with Debian's qemu-system-aarch64, unmodified, and the libraries that it
# loads. Read-only; the host mounts it. Made without root.
get_kvm_host() {
    local packages new=$host/.kvm.new file program
    have mke2fs || install_packages "mke2fs, for the disk image of the host that runs VMs" '' e2fsprogs
    have_cross || get_cross # its readelf
    packages=$(debian_closure "$kvm_suite" arm64 qemu-system-arm) || exit 1
    [ -n "$packages" ] || die "$kvm_suite has no package qemu-system-arm (arm64): scripts/lib/kvm.sh must follow"
    rm -rf "$new"
    mkdir -p "$new/root/usr/bin" "$new/root/usr/lib/aarch64-linux-gnu"
    say "downloading qemu-system-arm for arm64 and what it needs from $kvm_suite ($(wc -l <<<"$packages") packages, about 34 MB): the host that runs VMs"
    # shellcheck disable=SC2086 # one a word
    unpack_all "$new" $packages
    program=$new/tree/usr/bin/qemu-system-aarch64
    [ -x "$program" ] || die "qemu-system-arm of $kvm_suite has no qemu-system-aarch64: scripts/lib/kvm.sh must follow"
    cp "$program" "$new/root/usr/bin/"
    # libgcc is loaded by name when a thread ends early.
    elf_closure "$new/tree" "$program" "$new/tree/usr/lib/aarch64-linux-gnu/libgcc_s.so.1" >"$new/files"
    while read -r file; do
        [ "$file" = "$program" ] || cp -L "$file" "$new/root/usr/lib/aarch64-linux-gnu/"
    done <"$new/files"
    cp -L "$new/tree/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1" "$new/root/usr/lib/"
    # The same bytes each time: no journal, no random numbers, nothing that needs a checksum's module.
    E2FSPROGS_FAKE_TIME=1 quietly mke2fs mke2fs -q -t ext4 -b 4096 -m 0 -N 256 -O '^has_journal,^metadata_csum,^64bit,^resize_inode' \
        -U 00000000-0000-4000-8000-000000000001 -E hash_seed=00000000-0000-4000-8000-000000000002,root_owner=0:0,lazy_itable_init=0 \
        -d "$new/root" "$new/root.img" "$(($(du -sk "$new/root" | cut -f1) * 108 / 100 + 2048))k" || exit 1
    rm -rf "$new/tree" "$new/root" "$new/files" "${kvm_host:?}"
    mv "$new" "$kvm_host"
    say "Debian's QEMU for the host that runs VMs is in target/host/kvm/root.img ($(megabytes "$(stat -c %s "$kvm_host/root.img")"))"
}

have_kvm_selftests() { [ -e "$host/kvm-selftests/package" ]; }

# target/host/kvm-selftests: the KVM selftests of the very source that host:6.12's kernel was built from, as static programs.
get_kvm_selftests() {
    local suite version new=$host/.kvm-selftests.new folder program
    have_host 6.12 || get_host 6.12
    have_cross || get_cross
    have gcc || install_packages "programs that the kernel's build runs" '' gcc libc6-dev
    suite=$(sed -n 's/^suite //p' "$host/6.12/package")
    version=$(sed -n 's/^version //p;T;q' "$host/6.12/package")
    debian_download "$suite" arm64 "linux-source-6.12=$version" "the kernel's KVM selftests" || exit 1
    rm -rf "$new"
    mkdir -p "$new/source" "$new/made"
    dpkg-deb --fsys-tarfile "$deb" | tar -x -O ./usr/src/linux-source-6.12.tar.xz |
        tar -x -J -C "$new/source" --strip-components=1 --wildcards '*/tools/*' '*/include/*' '*/arch/arm64/*' '*/scripts/*' '*/Makefile' '*/Kbuild' '*/Kconfig'
    say "building the kernel's KVM selftests, $version"
    local make=(make -s ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-)
    quietly kvm-selftests "${make[@]}" -C "$new/source" headers || exit 1
    folder=$new/source/tools/testing/selftests/kvm
    quietly kvm-selftests "${make[@]}" -C "$folder" LDFLAGS="-static -pthread" OUTPUT="$new/made" || exit 1
    find "$new/made" -type f -perm -u+x -exec cp {} "$new/" \;
    for program in "$new"/*; do
        if [ -f "$program" ]; then aarch64-linux-gnu-strip "$program"; fi
    done
    rm -rf "$new/source" "$new/made"
    { deb_facts "$deb"; echo "suite $suite"; } >"$new/package"
    rm -rf "${host:?}/kvm-selftests"
    mv "$new" "$host/kvm-selftests"
    say "the kernel's KVM selftests are in target/host/kvm-selftests"
}

have_stress_ng() { [ -e "$host/stress-ng/package" ]; }

# target/host/stress-ng: Debian's stress-ng, unmodified, and beside it the libraries that it loads and their loader.
get_stress_ng() {
    local packages new=$host/.stress-ng.new program
    have_cross || get_cross # its readelf
    # libgbm's package wants Mesa's drivers, which libgbm loads only for a picture.
    packages=$(debian_closure "$kvm_suite" arm64 stress-ng | grep -vE '^(libllvm|libz3|mesa-libgallium|libx11-data)') || exit 1
    [ -n "$packages" ] || die "$kvm_suite has no package stress-ng (arm64): scripts/lib/kvm.sh must follow"
    rm -rf "$new"
    mkdir -p "$new/files"
    say "downloading stress-ng for arm64 and what it needs from $kvm_suite ($(wc -l <<<"$packages") packages, about 14 MB): load with verification, in tests"
    # shellcheck disable=SC2086 # one a word
    unpack_all "$new" $packages
    program=$new/tree/usr/bin/stress-ng
    [ -x "$program" ] || die "stress-ng of $kvm_suite has no usr/bin/stress-ng: scripts/lib/kvm.sh must follow"
    elf_closure "$new/tree" "$program" "$new/tree/usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1" | sort -u >"$new/list"
    while read -r file; do
        cp -L "$file" "$new/files/"
    done <"$new/list"
    rm -rf "$new/tree" "$new/list" "${host:?}/stress-ng"
    mv "$new" "$host/stress-ng"
    say "Debian's stress-ng and its libraries are in target/host/stress-ng/files ($(megabytes "$(du -sb "$host/stress-ng/files" | cut -f1)"))"
}
