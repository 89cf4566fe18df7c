//! Says hello and powers off: memory, MMIO, the device tree, PSCI.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
fn run(_vcpu: u64, dtb: u64) -> ! {
    use corevisor_guests::{calls, fail, mrs, say, tree::Tree};

    let version = calls::hvc(0x8400_0000, [0; 3]);
    if version >> 16 != 1 {
        fail!("PSCI version {version:#x}");
    }
    let level = mrs!("CurrentEL") >> 2;
    if level != 1 {
        fail!("started at EL{level}");
    }
    let Some(tree) = Tree::at(dtb) else { fail!("no device tree at {dtb:#x}") };
    let gic = if tree.has("arm,gic-v3") { 3 } else { 2 };
    say!("ok, device tree at {dtb:#x}, GICv{gic}");
    calls::system_off()
}

corevisor_guests::guest!("hello", run);
