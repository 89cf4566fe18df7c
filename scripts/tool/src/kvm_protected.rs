//! What a protected VM of Debian's QEMU starts with, and the manifest of it: made here, where the key is, not in the host.
//!
//! QEMU makes a device tree of its own, which differs between its versions and accelerators. The host is not to be asked for something
//! to sign. So the QEMU of this machine makes one; packed, it is the `-dtb` of the VM. Any QEMU adds memory, command line and
//! initrd to a given tree and nothing else: what comes of that is asked for here once more, and signed.

use crate::{
    error::{FileError, read, write},
    kvm::GuestGic,
    machine::option_with_path,
    sign::{Image, Key, SignError},
};
use dtoolkit::{Node, Property, fdt::Fdt, model::DeviceTree};
use kserv_model::image::{ImageHeader, PlaceError};
use std::{
    path::Path,
    process::{Command, Stdio},
};
use thiserror::Error;

/// The start of a guest's command line; the functions in the host have the same.
pub const APPEND: &str = "console=ttyAMA0 panic=-1 quiet";
/// virt's RAM.
const RAM: u64 = 0x4000_0000;
/// QEMU keeps its boot program's page free of kernels, and aligns to blocks.
const STUB: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// A VM of QEMU, as far as its device tree shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestShape {
    /// Its vCPUs.
    pub vcpus: u8,
    /// Its memory, as QEMU takes it: "256M".
    pub memory: String,
    /// Its interrupt controller.
    pub gic: GuestGic,
    /// What follows [`APPEND`].
    pub append: String,
}

impl GuestShape {
    /// QEMU's option.
    fn machine(&self) -> &'static str {
        match self.gic {
            GuestGic::Off | GuestGic::V2 => "virt,gic-version=2",
            GuestGic::V3 => "virt,gic-version=3,its=off",
        }
    }
}

/// There is nothing to sign.
#[derive(Debug, Error)]
pub enum ProtectedError {
    /// A file is missing.
    #[error(transparent)]
    File(#[from] FileError),
    /// QEMU made no tree.
    #[error("{program} gives no device tree of the guest: {why}")]
    Qemu {
        /// The program.
        program: String,
        /// What it said.
        why: String,
        /// If it did not start.
        source: Option<std::io::Error>,
    },
    /// The kernel does not start as it is.
    #[error("{path}: {error}")]
    Kernel {
        /// Its file.
        path: String,
        /// Why.
        error: PlaceError,
    },
    /// It does not say where the initrd is.
    #[error("the device tree that QEMU made says nothing of the initrd")]
    Tree,
    /// What the core would not take.
    #[error("the guest cannot be signed: {0}")]
    Sign(#[from] SignError),
}

/// What goes to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// For QEMU's `-dtb`.
    pub dtb: Vec<u8>,
    /// For the driver.
    pub manifest: Vec<u8>,
}

/// Signs the kernel `kernel` with the initramfs `initrd` in a VM of this shape.
///
/// # Errors
/// [`ProtectedError`].
pub fn sign(
    qemu: &Path,
    shape: &GuestShape,
    kernel: &Path,
    initrd: &[u8],
    key: &Key,
) -> Result<Signed, ProtectedError> {
    let content = read(kernel)?;
    let wrong = |error| ProtectedError::Kernel { path: kernel.display().to_string(), error };
    let entry = entry_of(&ImageHeader::parse(&content).map_err(wrong)?);
    let dir = tempfile::tempdir().map_err(FileError::at("make a folder in", std::env::temp_dir()))?;
    let (initrd_file, dtb_file) = (dir.path().join("initrd"), dir.path().join("guest.dtb"));
    write(&initrd_file, &[initrd])?;
    let ask = |given: Option<&Path>| tree_of_qemu(qemu, shape, kernel, &initrd_file, given);
    let dtb = packed(&ask(None)?)?;
    write(&dtb_file, &[&dtb])?;
    let tree = ask(Some(&dtb_file))?;
    let (start, end) = initrd_in(&tree)?;
    let at = end.next_multiple_of(BLOCK);
    let images = [
        Image { gpa: entry, content: &content },
        Image { gpa: at, content: &tree },
        Image { gpa: start, content: initrd },
    ];
    Ok(Signed { manifest: key.sign(&images, entry, at)?, dtb })
}

/// Where QEMU puts a kernel.
fn entry_of(header: &ImageHeader) -> u64 {
    RAM + if header.text_offset < STUB { header.text_offset + BLOCK } else { header.text_offset }
}

/// The tree that this machine's QEMU gives such a VM; without a PMU, which the VM has not.
fn tree_of_qemu(
    qemu: &Path,
    shape: &GuestShape,
    kernel: &Path,
    initrd: &Path,
    given: Option<&Path>,
) -> Result<Vec<u8>, ProtectedError> {
    let failed = |why: String, source| ProtectedError::Qemu { program: qemu.display().to_string(), why, source };
    let file = initrd.with_file_name("qemu.dtb");
    let mut line = Command::new(qemu);
    line.args(["-accel", "tcg", "-cpu", "cortex-a72,pmu=off", "-nodefaults", "-nographic", "-M"])
        .arg(option_with_path(&format!("{},dtb-randomness=off,dumpdtb=", shape.machine()), &file))
        .args(["-smp", &shape.vcpus.to_string(), "-m", &shape.memory, "-append", &format!("{APPEND} {}", shape.append)])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd);
    if let Some(given) = given {
        line.arg("-dtb").arg(given);
    }
    let done = line.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string(), Some(error)))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        return Err(failed(said.lines().last().unwrap_or("it failed").to_owned(), None));
    }
    Ok(read(&file)?)
}

/// The tree without the room that QEMU leaves in it: it doubles what it is given, and Linux takes 2 MiB at most.
fn packed(tree: &[u8]) -> Result<Vec<u8>, ProtectedError> {
    let fdt = Fdt::new(tree).map_err(|_| ProtectedError::Tree)?;
    Ok(DeviceTree::from_fdt(&fdt).to_dtb())
}

/// The initrd's first byte and the one behind its last.
fn initrd_in(tree: &[u8]) -> Result<(u64, u64), ProtectedError> {
    let fdt = Fdt::new(tree).map_err(|_| ProtectedError::Tree)?;
    let tree = DeviceTree::from_fdt(&fdt);
    let chosen = tree.find_node("/chosen").ok_or(ProtectedError::Tree)?;
    let number = |name: &str| {
        let bytes = chosen.property(name)?.value().to_vec();
        matches!(bytes.len(), 4 | 8).then(|| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    number("linux,initrd-start").zip(number("linux,initrd-end")).ok_or(ProtectedError::Tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::FUNCTIONS;
    use dtoolkit::model::{DeviceTreeNode, DeviceTreeProperty};

    #[test]
    fn the_guest_in_the_host_gets_the_same_command_line() {
        assert!(FUNCTIONS.contains(&format!("-append \"{APPEND} $APPEND\"")));
    }

    #[test]
    fn a_kernel_goes_where_qemu_puts_it() {
        let at = |text_offset| entry_of(&ImageHeader { text_offset, image_size: 1, flags: 0 });
        assert_eq!((at(0), at(0x8_0000)), (0x4020_0000, 0x4008_0000));
    }

    #[test]
    fn the_initrd_is_where_the_tree_says() {
        let mut tree = DeviceTree::new();
        assert!(matches!(initrd_in(&tree.to_dtb()), Err(ProtectedError::Tree)));
        let mut chosen = DeviceTreeNode::new_unchecked("chosen");
        chosen.add_property(DeviceTreeProperty::new_unchecked("linux,initrd-start", 0x4800_0000_u32.to_be_bytes()));
        chosen.add_property(DeviceTreeProperty::new_unchecked("linux,initrd-end", 0x4800_1234_u64.to_be_bytes()));
        tree.root.add_child(chosen);
        assert_eq!(initrd_in(&tree.to_dtb()).unwrap(), (0x4800_0000, 0x4800_1234));
        assert!(matches!(initrd_in(b"no tree"), Err(ProtectedError::Tree)));
    }

    #[test]
    fn what_is_no_kernel_or_no_qemu_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        let shape = GuestShape { vcpus: 1, memory: "256M".into(), gic: GuestGic::Off, append: String::new() };
        let refused = |content: &[u8]| {
            std::fs::write(&kernel, content).unwrap();
            sign(Path::new("/no/qemu"), &shape, &kernel, b"initrd", &Key::from_seed([1; 32])).unwrap_err().to_string()
        };
        assert!(refused(&[0x1f, 0x8b, 8, 0]).contains("gzip"));
        let mut image = vec![0; 4096];
        image[17] = 0x10;
        image[56..60].copy_from_slice(b"ARM\x64");
        assert!(refused(&image).contains("/no/qemu gives no device tree of the guest"));
    }
}
