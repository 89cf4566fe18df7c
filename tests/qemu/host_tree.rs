//! The device tree that the host got: its interrupt controller has no virtualization, the core is named, and SMMUs that the core
//! drives are not in it.

use crate::bed::{Failure, check};
use dtoolkit::{Node, Property, fdt::Fdt, model::DeviceTree};

fn read(bytes: &[u8]) -> Result<DeviceTree, Failure> {
    let size = bytes.get(4..8).and_then(|size| size.try_into().ok()).map_or(0, u32::from_be_bytes) as usize;
    let bytes = bytes.get(..size).unwrap_or_default();
    let fdt = Fdt::new(bytes).map_err(|error| Failure::new(format!("the host's device tree: {error}")))?;
    Ok(DeviceTree::from_fdt(&fdt))
}

/// Looks at the device tree at the start of `bytes`, of a host on a machine whose SMMUs the core drives: it names none, and no device
/// beside them.
pub fn is_confined(bytes: &[u8]) -> Result<(), Failure> {
    let tree = read(bytes)?;
    let confined =
        tree.find_node("/hypervisor").is_some_and(|node| node.property("corevisor,devices-confined").is_some());
    check(confined, "/hypervisor does not say that devices are confined")?;
    check(
        tree.find_node("/pcie@10000000").is_some_and(|node| node.property("msi-map").is_some()),
        "no PCI bus with MSIs",
    )?;
    let mut nodes = vec![&tree.root];
    while let Some(node) = nodes.pop() {
        let compatible = node.property("compatible").map_or_else(Vec::new, |property| property.value().to_vec());
        for gone in ["arm,smmu-v3", "virtio,mmio", "qemu,fw-cfg-mmio"] {
            let named = compatible.split(|byte| *byte == 0).any(|string| string == gone.as_bytes());
            check(!named, format!("the host's device tree has a node {} ({gone})", node.name()))?;
        }
        for gone in ["iommus", "iommu-map", "iommu-map-mask"] {
            check(node.property(gone).is_none(), format!("the host's device tree has {}/{gone}", node.name()))?;
        }
        nodes.extend(node.children());
    }
    Ok(())
}

/// Looks at the device tree at the start of `bytes`, of a host on virt.
pub fn examine(bytes: &[u8]) -> Result<(), Failure> {
    let tree = read(bytes)?;
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
    // QEMU's GICv3 has tables in memory, and the core stands before them; a GICv2 has none.
    let v3 = value("/intc@8000000", "compatible")?.starts_with(b"arm,gic-v3");
    let confined = value("/hypervisor", "corevisor,gic-confined").is_ok();
    check(confined == v3, "/hypervisor does not say rightly whether the GIC is confined")?;
    is("/psci", "method", b"smc\0")?;
    // Two frames of 16 bytes each: GICD and GICC, or GICD and redistributors.
    check(value("/intc@8000000", "reg")?.len() == 32, "the interrupt controller has more than two frames")?;
    check(value("/intc@8000000", "interrupts").is_err(), "the maintenance interrupt is still there")?;
    // The EL2 timer's interrupt is the core's.
    check(value("/memory@40000000", "reg").is_ok_and(|reg| reg.len() >= 16), "no memory")
}
