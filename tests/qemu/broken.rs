//! What is broken or missing when the core starts: one clear line that names what and where, and never a hang.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure},
    placed::{Placed, whole},
    runner::Case,
};
use corevisor_tool::{
    bundle::{HEADER_OFFSET, KERNEL_OFFSET},
    machine::Machine,
    outcome::Outcome,
    raspi::set,
    run::Boot,
};
use dtoolkit::model::{DeviceTree, DeviceTreeNode};

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("broken input", name, act);
    let file = |name: &str, break_it: fn(&mut Vec<u8>), texts: &'static [&'static str]| {
        Case::new("broken input", name, move |bed| broken_file(bed, break_it, texts))
    };
    let tree = |name: &str, break_it: fn(&mut DeviceTree), texts: &'static [&'static str]| {
        Case::new("broken input", name, move |bed| broken_tree(bed, break_it, texts))
    };
    vec![
        file("a bundle that is cut ends with a line", |file| file.truncate(file.len() / 2), &["host kernel", "cut"]),
        file(
            "a changed kernel ends with a line",
            |file| flip(file, KERNEL_OFFSET + 0x12_3456),
            &["host kernel", "checksum"],
        ),
        file(
            "a changed header of the bundle ends with a line",
            |file| flip(file, HEADER_OFFSET + 24),
            &["bundle header"],
        ),
        file("a bundle of another version ends with a line", |file| flip(file, HEADER_OFFSET + 8), &["version"]),
        file(
            "no kernel at all ends with a line",
            |file| file.truncate(HEADER_OFFSET),
            &["no host kernel", "scripts/image"],
        ),
        new("a boot module that is no kernel ends with a line", not_an_image),
        new("a missing initrd is told, and the host goes on", no_initrd),
        tree("a device tree without memory ends with a line", |tree| remove(tree, "memory@40000000"), &["no memory"]),
        tree("a device tree without CPUs ends with a line", |tree| remove(tree, "cpus"), &["CPU"]),
        tree(
            "a device tree without interrupt controller ends with a line",
            |tree| remove(tree, "intc@8000000"),
            &["interrupt controller"],
        ),
        tree("overlapping banks of memory end with a line", overlap, &["memory banks overlap", "0x5000"]),
        tree("memory elsewhere ends with a line", elsewhere, &["0x40200000", "RAM"]),
        new("a device tree without PSCI gives the host one CPU, and a warning", no_psci),
    ]
}

fn broken_file(bed: &Bed, break_it: fn(&mut Vec<u8>), texts: &[&str]) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("bundle.img");
    let mut file = whole(bed)?;
    break_it(&mut file);
    std::fs::write(&path, file)?;
    bed.run(Machine::virt().smp(2)).boot(Boot::File(path)).script("true").finish()?.core_stopped(texts)
}

fn flip(file: &mut [u8], at: usize) {
    file[at] ^= 4;
}

fn broken_tree(bed: &Bed, break_it: fn(&mut DeviceTree), texts: &[&str]) -> Result<(), Failure> {
    let mut placed = Placed::virt(bed, 2, &[], "true")?;
    break_it(&mut placed.tree);
    placed.run(bed)?.finish()?.core_stopped(texts)
}

fn remove(tree: &mut DeviceTree, node: &str) {
    assert!(tree.root.remove_child(node).is_some(), "QEMU's tree has no {node}");
}

fn bank(tree: &mut DeviceTree, base: u64, size: u64) {
    let mut node = DeviceTreeNode::new_unchecked(format!("memory@{base:x}"));
    set(&mut node, "device_type", b"memory\0");
    set(&mut node, "reg", &[base.to_be_bytes(), size.to_be_bytes()].concat());
    tree.root.add_child(node);
}

fn overlap(tree: &mut DeviceTree) {
    bank(tree, 0x5000_0000, 0x1000_0000);
}

fn elsewhere(tree: &mut DeviceTree) {
    remove(tree, "memory@40000000");
    bank(tree, 0x4800_0000, 0x1000_0000);
}

fn not_an_image(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("kernel");
    std::fs::write(&path, [0x1f, 0x8b, 8, 0].repeat(4096))?;
    let module = format!("guest-loader,addr=0x46000000,kernel={},bootargs=x", path.display());
    let machine = Machine::virt().smp(2).arg("-device").arg(module);
    let done = bed.run(machine).boot(Boot::File(bed.project.core())).script("true").finish()?;
    done.core_stopped(&["host kernel at 0x46000000", "no arm64 Image"])
}

fn no_initrd(bed: &Bed) -> Result<(), Failure> {
    let done = bed.run(Machine::virt().smp(2)).no_initrd().finish()?;
    done.says_times("corevisor: warning: /chosen names no initrd", 1)?;
    done.check(matches!(&done.outcome, Outcome::Panicked(why) if why.contains("VFS")), "Linux should miss its root")
}

fn no_psci(bed: &Bed) -> Result<(), Failure> {
    let script = format!("{FUNCTIONS}\nis CPUs $(nproc) 1; if complaints; then fail complaints; fi; exit 0");
    let mut placed = Placed::virt(bed, 2, &[], &script)?;
    remove(&mut placed.tree, "psci");
    let done = placed.run(bed)?.finish()?;
    done.says_times("corevisor: warning: /psci is missing", 1)?;
    done.says("corevisor-host: script ended with status 0")?;
    done.check(
        matches!(done.outcome, Outcome::PoweredOff { .. } | Outcome::Halted(_)),
        "without power-off the host stands still at its end",
    )
}
