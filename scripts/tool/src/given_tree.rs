//! The device tree that a machine boots with, with the public keys that the core is to trust in it.
//!
//! The core takes them from the property `corevisor,public-keys` of `/chosen`. Whoever gives the core its device tree is its boot
//! loader, which it trusts anyway. QEMU's virt makes its tree itself, so it is asked for it first.

use crate::machine::{BootFiles, Console, Machine, MachineError, option_with_path};
use corevisor_interface::boot::KEY_PROPERTY;
use dtoolkit::{
    error::FdtParseError,
    fdt::Fdt,
    model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
};
use std::{
    path::Path,
    process::{Command, Stdio},
};
use thiserror::Error;

/// There is no tree to edit.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The board does not have what was asked for.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// QEMU did not make one.
    #[error("{program} gives no device tree of the machine: {why}")]
    Qemu {
        /// The program.
        program: String,
        /// What it said.
        why: String,
        /// If it did not start.
        source: Option<std::io::Error>,
    },
    /// It is none.
    #[error("not a device tree: {0}")]
    Parse(FdtParseError),
}

/// The device tree that QEMU makes for `machine`; in `dir` for a moment.
///
/// # Errors
/// [`TreeError`].
pub fn of_qemu(qemu: &Path, machine: &Machine, dir: &Path) -> Result<Vec<u8>, TreeError> {
    let file = dir.join("qemu.dtb");
    let dump = option_with_path("dumpdtb=", &file);
    let machine = machine.clone().gdb(false).machine_option(dump.to_string_lossy());
    let args = machine.args(&BootFiles::default(), true, Console::Pipes)?;
    let failed = |why: String, source| TreeError::Qemu { program: qemu.display().to_string(), why, source };
    let done = Command::new(qemu)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string(), Some(error)))?;
    let said = String::from_utf8_lossy(&done.stderr);
    std::fs::read(&file)
        .map_err(|error| failed(said.lines().last().map_or_else(|| error.to_string(), str::to_owned), None))
}

/// The tree with public keys.
///
/// # Errors
/// [`TreeError::Parse`].
pub fn with_keys(tree: &[u8], keys: &[[u8; 32]]) -> Result<Vec<u8>, TreeError> {
    let fdt = Fdt::new(tree).map_err(TreeError::Parse)?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    if tree.find_node("/chosen").is_none() {
        tree.root.add_child(DeviceTreeNode::new_unchecked("chosen"));
    }
    if let Some(chosen) = tree.find_node_mut("/chosen") {
        chosen.remove_property(KEY_PROPERTY);
        chosen.add_property(DeviceTreeProperty::new_unchecked(KEY_PROPERTY, keys.concat()));
    }
    Ok(tree.to_dtb())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::{Node, Property};

    #[test]
    fn keys_stand_in_chosen_and_replace_what_was_there() {
        let once = with_keys(&DeviceTree::new().to_dtb(), &[[9; 32]]).unwrap();
        let twice = with_keys(&once, &[[1; 32], [2; 32]]).unwrap();
        let tree = DeviceTree::from_fdt(&Fdt::new(&twice).unwrap());
        let chosen = tree.find_node("/chosen").unwrap();
        assert_eq!(chosen.property(KEY_PROPERTY).unwrap().value(), [[1; 32], [2; 32]].concat());
        assert!(with_keys(b"no tree", &[]).is_err());
    }
}
