# Functions for scripts in a Linux host that runs VMs: /etc/corevisor/kvm.sh there. scripts/tool puts it into the initramfs, and
# beside it a disk with Debian's QEMU, one with the guest's kernel (files in /disks where the board can have no disk), /guest/initrd,
# and the driver, if there is one; for a protected guest also /guest/manifest, which was signed, and /guest/dtb.
#
# A VM is what these say: VCPUS, MEMORY, GIC (off: QEMU's own; 2, 3: the host kernel's), ITS (GICv3's, for MSIs: on, off), APPEND.

: "${VCPUS:=1}" "${MEMORY:=256M}" "${GIC:=off}" "${ITS:=on}" "${APPEND:=}"

no_kvm() { echo "corevisor-kvm: $*"; exit 1; }

# The disk that the tool called so: a name under /dev; or a file, where the board has no virtio.
disk_called() {
    [ ! -f "/disks/$1" ] || { echo "/disks/$1"; return; }
    for disk in /sys/block/vd* /sys/block/mmcblk?; do
        [ "$(cat "$disk/serial" 2>/dev/null)" != "$1" ] || { echo "/dev/${disk##*/}"; return; }
    done
    return 1
}

# Debian's QEMU under its usual names.
programs_up() {
    while read -r module; do
        insmod "/lib/modules/$(uname -r)/$module" 2>/dev/null || grep -q "^$(basename "$module" .ko | tr - _) " /proc/modules ||
            no_kvm "$module does not load"
    done < /etc/corevisor/kvm-modules
    disk=$(disk_called qemu) || no_kvm "the disk with QEMU is not there"
    mkdir -p /kvm
    mount -t ext4 -o ro "$disk" /kvm || no_kvm "the disk with QEMU cannot be mounted"
    mkdir -p /usr/lib
    ln -s /kvm/usr/lib/aarch64-linux-gnu /usr/lib/aarch64-linux-gnu
    ln -s /kvm/usr/lib/aarch64-linux-gnu /lib/aarch64-linux-gnu
    ln -s /kvm/usr/lib/ld-linux-aarch64.so.1 /lib/ld-linux-aarch64.so.1
    ln -s /kvm/usr/bin/qemu-system-aarch64 /bin/qemu-system-aarch64
    GUEST_KERNEL=$(disk_called guest) || no_kvm "the disk with the guest's kernel is not there"
}

# The driver, where the host has one; the kernel's own KVM needs none. Arguments are the module's.
driver_up() {
    if [ -e /lib/corevisor_kvm.ko ]; then
        insmod /lib/corevisor_kvm.ko "$@" || no_kvm "the driver does not load: $(dmesg | tail -n 3)"
    fi
    [ -c /dev/kvm ] || no_kvm "there is no /dev/kvm: $(dmesg | grep -i 'kvm \[' | tail -n 1)"
}

# A protected guest's driver: what it makes from then on is protected, and starts with what the manifest says.
protected_up() {
    driver_up protected=1 "$@"
    grep -q ' /sys/kernel/debug ' /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug || no_kvm "there is no debugfs"
    cat /guest/manifest > /sys/kernel/debug/corevisor_kvm/manifest || no_kvm "the driver does not take the manifest"
}

kvm_up() {
    programs_up
    if [ -e /guest/manifest ]; then protected_up "$@"; else driver_up "$@"; fi
}

# The -M of a VM. A protected guest has no interrupt translation service: its tables would be in memory that nobody else reads.
vm_machine() {
    [ ! -e /guest/manifest ] || ITS=off
    case $GIC in
    off) echo virt,kernel-irqchip=off,gic-version=2 ;;
    3) echo "virt,gic-version=3,its=$ITS" ;;
    *) echo "virt,gic-version=$GIC" ;;
    esac
}

# A VM without its console; arguments are QEMU's.
vm_without_console() {
    # A protected guest's tree is what was signed, not what this QEMU makes.
    [ ! -e /guest/manifest ] || set -- -dtb /guest/dtb "$@"
    qemu-system-aarch64 -accel kvm -cpu host -M "$(vm_machine)" -smp "$VCPUS" -m "$MEMORY" -nodefaults -nographic \
        -kernel "$GUEST_KERNEL" -initrd /guest/initrd -append "console=ttyAMA0 panic=-1 quiet $APPEND" "$@"
}

# A VM whose console is standard input and output; Ctrl-C is the guest's. A reset of the guest ends it.
vm() { vm_without_console -chardev stdio,id=console,signal=off -serial chardev:console -no-reboot "$@"; }

# Where a guest is protected: QEMU waits for orders when the core refuses the VM, and nobody here gives any. It is ended, and the driver's reason told.
ends_if_refused() {
    [ -e /guest/manifest ] || return
    until dmesg | grep -e 'the core refuses a protected VM' -e 'cannot be given to the core'; do sleep 1; done
    killall -9 qemu-system-aarch64
}

# A VM whose console goes to standard output and the file /tmp/guest; the status is that of the guest's script, or QEMU's.
vm_of_script() {
    ends_if_refused &
    { vm "$@" < /dev/null; echo $? > /tmp/vmm.status; } | tee /tmp/guest
    kill $! 2>/dev/null
    read -r status < /tmp/vmm.status
    [ "$status" = 0 ] || { echo "corevisor-kvm: QEMU ended with status $status"; return "$status"; }
    said=$(tr -d '\r' < /tmp/guest | sed -n 's/^corevisor-guest: script ended with status //p' | tail -n 1)
    [ -n "$said" ] || { echo "corevisor-kvm: the guest's script came to no end"; return 1; }
    return "$said"
}

# A VM in the background whose console goes to /tmp/guest, and whose QEMU takes orders: `qmp`. Its process is $vmm.
vm_with_monitor() {
    rm -f /tmp/qmp.in /tmp/qmp.out
    mkfifo /tmp/qmp.in /tmp/qmp.out
    exec 3<> /tmp/qmp.in 4<> /tmp/qmp.out
    vm -chardev pipe,id=qmp,path=/tmp/qmp -mon chardev=qmp,mode=control "$@" < /dev/null > /tmp/guest 2>&1 3<&- 4<&- &
    vmm=$!
    qmp qmp_capabilities
}

# Gives QEMU an order, and its answer on standard output; the status says whether it is an error.
qmp() { # COMMAND [ARGUMENTS]
    echo "{\"execute\": \"$1\"${2:+, \"arguments\": $2}}" >&3
    while read -r -t 100 answer <&4; do
        case $answer in
        *'"return"'*) echo "$answer"; return 0 ;;
        *'"error"'*) echo "$answer"; return 1 ;;
        esac
    done
    echo "QEMU does not answer to $1"
    return 1
}

# An order to QEMU's monitor for people, which is content if it says nothing.
hmp() { # COMMAND LINE
    case $(qmp human-monitor-command "{\"command-line\": \"$*\"}") in
    '{"return": ""}'*) ;;
    *) echo "QEMU does not do '$*': $answer"; return 1 ;;
    esac
}

# A VM on the host's own console, for somebody at the keyboard.
vm_of_terminal() {
    read -r consoles < /sys/class/tty/console/active
    ends_if_refused &
    vm "$@" < "/dev/${consoles##* }" > "/dev/${consoles##* }" 2>&1
}
