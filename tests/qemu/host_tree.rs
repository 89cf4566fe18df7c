//! The device tree that the host got: its interrupt controller has no virtualization, and the core is named.

use crate::bed::{Failure, check};
use dtoolkit::{Node, Property, fdt::Fdt, model::DeviceTree};

/// Looks at the device tree at the start of `bytes`, of a host on virt.
pub fn examine(bytes: &[u8]) -> Result<(), Failure> {
    let size = bytes.get(4..8).and_then(|size| size.try_into().ok()).map_or(0, u32::from_be_bytes) as usize;
    let bytes = bytes.get(..size).unwrap_or_default();
    let fdt = Fdt::new(bytes).map_err(|error| Failure::new(format!("the host's device tree: {error}")))?;
    let tree = DeviceTree::from_fdt(&fdt);
    let value = |path: &str, name: &str| -> Result<Vec<u8>, Failure> {
        let node = tree.find_node(path).ok_or_else(|| Failure::new(format!("no node {path}")))?;
        let property = node.property(name).ok_or_else(|| Failure::new(format!("{path} has no {name}")))?;
        Ok(property.value().to_vec())
    };
    let is = |path: &str, name: &str, wanted: &[u8]| {
        let found = value(path, name)?;
        let shown = || format!("{path}/{name} is {}, not {}", found.escape_ascii(), wanted.escape_ascii());
        check(found == wanted, shown())
    };
    check(value("/hypervisor", "compatible")?.starts_with(b"corevisor"), "/hypervisor is not corevisor's")?;
    is("/psci", "method", b"smc\0")?;
    // Two frames of 16 bytes each: GICD and GICC, or GICD and redistributors.
    check(value("/intc@8000000", "reg")?.len() == 32, "the interrupt controller has more than two frames")?;
    check(value("/intc@8000000", "interrupts").is_err(), "the maintenance interrupt is still there")?;
    // The EL2 timer's interrupt is the core's.
    check(value("/memory@40000000", "reg").is_ok_and(|reg| reg.len() >= 16), "no memory")
}
