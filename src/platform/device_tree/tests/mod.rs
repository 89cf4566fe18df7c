//! Tests of the device tree code: over real trees (`tests/data/dtb`), over trees built here, and over broken ones.
#![forbid(unsafe_code)]

mod behind_smmu;
mod broken;
mod build;
mod edited;
mod fuzz;
mod read;
mod withheld;

use std::{boxed::Box, vec, vec::Vec};

use super::*;
use crate::abstract_machine::addr::{Pa, PhysRange};

macro_rules! dtb {
    ($name:literal) => {
        &include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/dtb/", $name, ".dtb"))[..]
    };
}
pub(super) use dtb;

/// Every real tree that describes a complete machine.
fn machines() -> [(&'static str, &'static [u8]); 6] {
    [
        ("virt-gicv2", dtb!("virt-gicv2")),
        ("virt-gicv3", dtb!("virt-gicv3")),
        ("virt-gicv3-smmu", dtb!("virt-gicv3-smmu")),
        ("virt-numa-modules", dtb!("virt-numa-modules")),
        ("virt-140-cpus", dtb!("virt-140-cpus")),
        ("raspi4b-qemu", dtb!("raspi4b-qemu")),
    ]
}

fn range(base: u64, end: u64) -> PhysRange {
    PhysRange::between(Pa::new(base), Pa::new(end))
}

/// Normalises and describes `blob`, then lets `act` look.
fn with_tree<R>(blob: &[u8], act: impl FnOnce(&DeviceTree, &MachineDescription) -> R) -> Result<R, DeviceTreeError> {
    let mut buffer = vec![0xa5; buffer_size(blob)?];
    let tree = DeviceTree::normalise(blob, &mut buffer)?;
    let mut description = Box::new(MachineDescription::empty());
    describe(&tree, &mut description)?;
    Ok(act(&tree, &description))
}

fn described(blob: &[u8]) -> Result<MachineDescription, DeviceTreeError> {
    with_tree(blob, |_, description| description.clone())
}

/// The host's tree for `blob` with `edits`, in a buffer of the promised size.
fn edited(blob: &[u8], edits: &HostEdits) -> Result<Vec<u8>, DeviceTreeError> {
    with_tree(blob, |tree, description| {
        let mut out = vec![0xa5; host_tree_size(tree, edits)];
        host_device_tree(tree, description, edits, &mut out).map(<[u8]>::to_vec)
    })?
}

const NO_EDITS: HostEdits = HostEdits {
    core_memory: &[],
    initrd: None,
    bootargs: None,
    smmus_taken: false,
    gic_taken: false,
    seed: None,
    version: "0",
};
