//! The files to boot core and host on a board.

use crate::{
    bundle::{BundleError, bundle},
    error::{FileError, read, write},
    initrd::{self, InitrdError},
    project::{Kernel, Project},
    sdcard,
};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The files cannot be made.
#[derive(Debug, Error)]
pub enum DeployError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The initramfs cannot be made.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// Core and kernel do not make a bundle.
    #[error("{path}: {error}")]
    Bundle {
        /// The file that is wrong.
        path: String,
        /// Why.
        error: BundleError,
    },
}

/// The form of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// For QEMU's virt, and every board whose boot loader starts an arm64 Image.
    Virt,
    /// For the firmware of the Raspberry Pi 4.
    Raspi4b,
}

/// What to deploy.
#[derive(Clone, Debug)]
pub struct Deploy {
    /// The form.
    pub board: Target,
    /// The host's kernel: a version, or a file.
    pub kernel: String,
    /// The host's initramfs, if not the usual one.
    pub initrd: Option<PathBuf>,
    /// More for the end of the command line.
    pub append: Vec<String>,
    /// Where to; else `target/image/BOARD`.
    pub output: Option<PathBuf>,
}

/// Where the Pi's firmware loads the kernel.
const PI_KERNEL: u64 = 0x20_0000;
/// The least address for the initramfs on the Pi: past any usual kernel.
const PI_INITRD: u64 = 0x800_0000;
const PI_README: &str = include_str!("../deploy/raspi4b.txt");
const VIRT_README: &str = include_str!("../deploy/virt.txt");

/// What was made.
pub struct Deployed {
    /// The folder.
    pub dir: PathBuf,
    /// The files' names.
    pub files: Vec<String>,
    /// Bytes of memory that core and kernel need, from where they are loaded.
    pub memory: u64,
}

/// Makes the files.
///
/// # Errors
/// [`DeployError`].
pub fn deploy(project: &Project, what: &Deploy) -> Result<Deployed, DeployError> {
    let kernel = Kernel::resolve(project, &what.kernel)?;
    let file = bundle(&read(&project.core())?, &read(&kernel.image)?).map_err(|error| {
        let wrong = match error {
            BundleError::Kernel(_) | BundleError::KernelMemory(_) => kernel.image.clone(),
            _ => project.core(),
        };
        DeployError::Bundle { path: wrong.display().to_string(), error }
    })?;
    let memory = crate::arm64_image::image_size(&file).unwrap_or(file.len() as u64);
    let initrd = match &what.initrd {
        Some(own) => read(own)?,
        None => read(&initrd::base(project, &kernel)?)?,
    };
    let name = match what.board {
        Target::Virt => "virt",
        Target::Raspi4b => "raspi4b",
    };
    let dir = what.output.clone().unwrap_or_else(|| project.root().join("target/image").join(name));
    let files = match what.board {
        Target::Virt => write_all(
            &dir,
            &[("corevisor-virt.img", &file), ("initrd.img", &initrd), ("README.txt", VIRT_README.as_bytes())],
        )?,
        Target::Raspi4b => {
            let dtb = read(&project.pi_dtb())?;
            let config = pi_config(memory);
            let cmdline = pi_cmdline(&what.append);
            let boot: [(&str, &[u8]); 6] = [
                ("kernel8.img", &file),
                ("config.txt", config.as_bytes()),
                ("cmdline.txt", cmdline.as_bytes()),
                ("bcm2711-rpi-4-b.dtb", &dtb),
                ("initrd.img", &initrd),
                ("README.txt", PI_README.as_bytes()),
            ];
            let mut names = write_all(&dir, &boot)?;
            sdcard::write(&dir.join("sdcard.img"), &boot)?;
            names.push("sdcard.img".to_owned());
            names
        }
    };
    Ok(Deployed { dir, files, memory })
}

fn write_all(dir: &Path, files: &[(&str, &[u8])]) -> Result<Vec<String>, FileError> {
    for (name, content) in files {
        write(&dir.join(name), &[content])?;
    }
    Ok(files.iter().map(|(name, _)| (*name).to_owned()).collect())
}

/// `memory`: what the bundle needs from its first byte on. The initramfs goes to an address that is surely past it; the
/// firmware's "followkernel" would count the file only, and the kernel's own data area comes behind that.
fn pi_config(memory: u64) -> String {
    let initrd = PI_INITRD.max((PI_KERNEL + memory).next_multiple_of(16 << 20));
    format!(
        "# The Raspberry Pi 4's firmware reads this file.\n\
         arm_64bit=1\n\
         kernel=kernel8.img\n\
         device_tree=bcm2711-rpi-4-b.dtb\n\
         initramfs initrd.img {initrd:#x}\n\
         # The console is the mini UART on pins 8 and 10, 115200 baud: serial1 of the device tree, ttyS1 in Linux.\n\
         enable_uart=1\n"
    )
}

fn pi_cmdline(append: &[String]) -> String {
    let mut line = "console=ttyS1,115200 panic=10".to_owned();
    for args in append.iter().filter(|args| !args.is_empty()) {
        line.push(' ');
        line.push_str(args);
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_initramfs_is_past_the_kernels_memory() {
        assert!(pi_config(40 << 20).contains("initramfs initrd.img 0x8000000\n"));
        assert!(pi_config(0x700_0000).contains("initramfs initrd.img 0x8000000\n"));
        assert!(pi_config(0x7e0_0001).contains("initramfs initrd.img 0x9000000\n"));
    }

    #[test]
    fn the_firmware_reads_one_line_of_arguments() {
        let line = pi_cmdline(&["corevisor.log=debug".into(), String::new(), "x".into()]);
        assert_eq!(line, "console=ttyS1,115200 panic=10 corevisor.log=debug x\n");
    }

    #[test]
    fn every_file_of_the_boot_partition_is_in_its_readme() {
        for name in [
            "kernel8.img",
            "config.txt",
            "cmdline.txt",
            "bcm2711-rpi-4-b.dtb",
            "initrd.img",
            "start4.elf",
            "fixup4.dat",
        ] {
            assert!(PI_README.contains(name), "{name}");
        }
    }
}
