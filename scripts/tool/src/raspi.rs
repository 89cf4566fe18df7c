//! The Raspberry Pi 4's device tree, edited for QEMU's model of the board. The real board gets it as it is.
//!
//! - Blocks that the model does not have and whose drivers bring stock kernels down are disabled: [`NOT_IN_QEMU`].
//! - The console is the first UART (`serial0`, a PL011: `ttyAMA0`), the one that QEMU connects. On the board that one talks to the
//!   Bluetooth chip; as long as the chip's node is there Linux keeps the UART for its driver and there is no
//!   `/dev/ttyAMA0`, only an early console.
//! - The second gigabyte of memory is described. QEMU has it, but says so in the device tree only of its first part, which ends
//!   below the video memory.

use crate::error::{FileError, read};
use dtoolkit::{
    Node, Property,
    error::FdtParseError,
    fdt::Fdt,
    model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
};
use std::path::Path;
use thiserror::Error;

/// The start of the host kernel's command line in QEMU. Quieter than `quiet`: drivers complain of what the model lacks.
pub const QEMU_APPEND: &str = "console=ttyAMA0,115200 panic=-1 loglevel=3";

/// What is disabled for QEMU, by `compatible`.
pub const NOT_IN_QEMU: &[&str] = &[
    // Probed by Debian's kernels, and what the model has in their place panics them.
    "brcm,l2-intc",
    "brcm,bcm2711-hdmi-i2c",
    "brcm,brcm2711-dvp",
    // Holds the UART that QEMU connects.
    "brcm,bcm43438-bt",
];

/// What QEMU takes out itself, with a warning for each.
const REMOVED_BY_QEMU: &[&str] =
    &["brcm,bcm2711-pcie", "brcm,bcm2711-rng200", "brcm,bcm2711-thermal", "brcm,bcm2711-genet-v5"];

/// The device tree cannot be edited.
#[derive(Debug, Error)]
pub enum DtbError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is none.
    #[error("{path} is not a device tree: {error}")]
    Parse {
        /// The file.
        path: String,
        /// Why.
        error: FdtParseError,
    },
    /// It is not that of the board.
    #[error("{0} has no {1}: it is not this board's device tree")]
    OtherBoard(String, &'static str),
}

/// The device tree at `path`, for QEMU's raspi4b.
///
/// # Errors
/// [`DtbError`].
pub fn for_qemu(path: &Path) -> Result<Vec<u8>, DtbError> {
    let bytes = read(path)?;
    let shown = || path.display().to_string();
    let fdt = Fdt::new(&bytes).map_err(|error| DtbError::Parse { path: shown(), error })?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    edit(&mut tree).ok_or_else(|| DtbError::OtherBoard(shown(), "/chosen or no alias serial0"))?;
    Ok(tree.to_dtb())
}

fn edit(tree: &mut DeviceTree) -> Option<()> {
    disable(&mut tree.root, NOT_IN_QEMU);
    remove(&mut tree.root, REMOVED_BY_QEMU);
    tree.root.add_child(upper_memory());
    tree.find_node("/aliases")?.property("serial0")?;
    set_text(tree.find_node_mut("/chosen")?, "stdout-path", "serial0:115200n8");
    Some(())
}

/// What QEMU has above 1 GiB. It replaces nodes called `memory`, so this one has another name.
fn upper_memory() -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("upper-memory@40000000");
    set_text(&mut node, "device_type", "memory");
    set_cells(&mut node, "reg", &[0, 0x4000_0000, 0x4000_0000]);
    node
}

fn disable(node: &mut DeviceTreeNode, compatibles: &[&str]) {
    if is_one_of(node, compatibles) {
        set_text(node, "status", "disabled");
    }
    for child in node.children_mut() {
        disable(child, compatibles);
    }
}

fn remove(node: &mut DeviceTreeNode, compatibles: &[&str]) {
    let mut names = Vec::new();
    for child in node.children_mut() {
        if is_one_of(child, compatibles) {
            names.push(Node::name(&*child).to_owned());
        }
        remove(child, compatibles);
    }
    for name in names {
        node.remove_child(&name);
    }
}

fn is_one_of(node: &DeviceTreeNode, compatibles: &[&str]) -> bool {
    node.property("compatible").is_some_and(|list| has_text(list.value(), compatibles))
}

/// Whether a list of zero-ended texts has one of `wanted`.
fn has_text(list: &[u8], wanted: &[&str]) -> bool {
    list.split(|byte| *byte == 0).any(|text| wanted.iter().any(|wanted| text == wanted.as_bytes()))
}

/// Gives a node a property, in place of the one that it has by that name.
pub fn set(node: &mut DeviceTreeNode, name: &str, value: &[u8]) {
    node.remove_property(name);
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

pub(crate) fn set_cells(node: &mut DeviceTreeNode, name: &str, cells: &[u32]) {
    set(node, name, &cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<_>>());
}

pub(crate) fn set_text(node: &mut DeviceTreeNode, name: &str, text: &str) {
    set(node, name, &[text.as_bytes(), b"\0"].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tree: &DeviceTree, path: &str, name: &str) -> Option<String> {
        let value = tree.find_node(path)?.property(name)?.value().to_vec();
        Some(String::from_utf8(value).unwrap().trim_end_matches('\0').to_owned())
    }

    fn sample() -> DeviceTree {
        let mut tree = DeviceTree::new();
        let mut node = |parent: &str, name: &str, compatible: &str| {
            let mut node = DeviceTreeNode::new(name).unwrap();
            if !compatible.is_empty() {
                set_text(&mut node, "compatible", compatible);
            }
            tree.find_node_mut(parent).unwrap().add_child(node);
        };
        node("/", "chosen", "");
        node("/", "aliases", "");
        node("/", "soc", "simple-bus");
        node("/soc", "serial@7e201000", "arm,pl011\0arm,primecell");
        node("/soc/serial@7e201000", "bluetooth", "brcm,bcm43438-bt");
        node("/soc", "rng@7e104000", "brcm,bcm2711-rng200");
        node("/soc", "interrupt-controller@7ef00100", "brcm,bcm2711-l2-intc\0brcm,l2-intc");
        set_text(tree.find_node_mut("/aliases").unwrap(), "serial0", "/soc/serial@7e201000");
        set_text(tree.find_node_mut("/chosen").unwrap(), "stdout-path", "serial1:115200n8");
        tree
    }

    #[test]
    fn the_uart_that_qemu_connects_becomes_the_console() {
        let mut tree = sample();
        edit(&mut tree).unwrap();
        assert_eq!(text(&tree, "/chosen", "stdout-path").unwrap(), "serial0:115200n8");
        assert_eq!(text(&tree, "/soc/serial@7e201000/bluetooth", "status").unwrap(), "disabled");
        assert_eq!(text(&tree, "/soc/serial@7e201000", "status"), None);
    }

    #[test]
    fn what_is_not_in_the_model_is_disabled_by_any_of_its_names() {
        let mut tree = sample();
        edit(&mut tree).unwrap();
        assert_eq!(text(&tree, "/soc/interrupt-controller@7ef00100", "status").unwrap(), "disabled");
    }

    #[test]
    fn what_qemu_would_take_out_with_a_warning_is_taken_out_before() {
        let mut tree = sample();
        assert!(tree.find_node("/soc/rng@7e104000").is_some());
        edit(&mut tree).unwrap();
        assert!(tree.find_node("/soc/rng@7e104000").is_none());
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.dtb");
        std::fs::write(&path, b"no device tree").unwrap();
        assert!(for_qemu(&path).unwrap_err().to_string().contains("x.dtb is not a device tree"));
        std::fs::write(&path, DeviceTree::new().to_dtb()).unwrap();
        assert!(matches!(for_qemu(&path), Err(DtbError::OtherBoard(..))));
    }
}
