//! What can be said of options and the files that they name, before anything is installed or built for them.

use super::{BenchArgs, CliError, ImageArgs, LogLevel};
use crate::{
    arm64_image::{NotAnImage, image_size},
    board::GICV2_CPUS,
    bundle::BundleError,
    deploy::{DeployError, Target},
    error::FileError,
    project::is_version,
};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Options that come to nothing, or files that cannot be what they are named for.
#[derive(Debug, Error)]
pub(super) enum CheckError {
    #[error("{0} is a folder: name a file")]
    Folder(String),
    #[error("{0} is no folder: name another one")]
    NoFolder(String),
    #[error("{0} is empty: name another file")]
    Empty(String),
    #[error("{0} is no device tree: name a .dtb")]
    NoTree(String),
    #[error("--append has a line break: a kernel's command line is one line")]
    LineBreak,
    #[error("--append has {0} bytes, and a kernel's command line has at most {COMMAND_LINE}: leave something out")]
    LongAppend(usize),
    #[error("there is no check called {name}; there are: {known}")]
    UnknownCheck { name: String, known: String },
    #[error("{0}")]
    Useless(&'static str),
    #[error("{what} does not work on --board {board}, {why}: use --board virt")]
    Board { what: &'static str, board: crate::board::Board, why: &'static str },
    #[error("the core runs on at most {MOST_CPUS} CPUs: give --smp {MOST_CPUS} or less, or --no-core")]
    Cpus,
    #[error("a VM with a GICv2 has at most {GICV2_CPUS} vCPUs: give --vcpus {GICV2_CPUS} or less, or {0}")]
    Vcpus(&'static str),
    #[error("--guest needs the driver, which is built for Debian's kernels: give --kernel a version, or --no-core")]
    DriverFor,
}

/// CPUs that the core takes: src/platform/device_tree.
pub(super) const MOST_CPUS: u32 = 64;
/// Linux's COMMAND_LINE_SIZE on arm64.
const COMMAND_LINE: usize = 2048;

/// Whether there is something at `path` that is no folder. What is no regular file (a disk, a pipe) is not opened.
pub(super) fn no_folder(path: &Path) -> Result<(), CliError> {
    let there = fs::metadata(path).map_err(FileError::at("find", path))?;
    if there.is_dir() {
        return Err(CheckError::Folder(path.display().to_string()).into());
    }
    if there.is_file() {
        File::open(path).map_err(FileError::at("read", path))?;
    }
    Ok(())
}

/// The same, with something in it.
pub(super) fn file(path: &Path) -> Result<(), CliError> {
    no_folder(path)?;
    match fs::metadata(path) {
        Ok(there) if there.is_file() && there.len() == 0 => Err(CheckError::Empty(path.display().to_string()).into()),
        _ => Ok(()),
    }
}

/// The first bytes of a regular file, as many as an Image's header has.
pub(super) fn head(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    if !path.is_file() {
        return Ok(None);
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(FileError::at("read", path))?;
    file.take(64).read_to_end(&mut head).map_err(FileError::at("read", path))?;
    Ok(Some(head))
}

/// Why a file is no arm64 Image, if it is none.
pub(super) fn image_form(path: &Path) -> Result<Option<NotAnImage>, CliError> {
    file(path)?;
    Ok(head(path)?.and_then(|head| image_size(&head).err()))
}

/// A device tree.
pub(super) fn tree(path: &Path) -> Result<(), CliError> {
    file(path)?;
    match head(path)? {
        Some(head) if !head.starts_with(&[0xd0, 0x0d, 0xfe, 0xed]) => {
            Err(CheckError::NoTree(path.display().to_string()).into())
        }
        _ => Ok(()),
    }
}

/// More for a kernel's command line.
pub(super) fn append(parts: &[String]) -> Result<(), CliError> {
    let size = parts.join(" ").len();
    if parts.iter().any(|part| part.contains('\n')) {
        return Err(CheckError::LineBreak.into());
    }
    if size > COMMAND_LINE {
        return Err(CheckError::LongAppend(size).into());
    }
    Ok(())
}

/// A folder, or a place for one.
fn folder(path: &Path) -> Result<(), CliError> {
    match path.ancestors().find(|above| above.exists()) {
        Some(above) if !above.is_dir() => Err(CheckError::NoFolder(above.display().to_string()).into()),
        _ => Ok(()),
    }
}

/// `scripts/image`.
pub(super) fn image(args: &ImageArgs) -> Result<(), CliError> {
    let mut parts = args.host.append.clone();
    parts.extend(args.log.map(LogLevel::argument));
    if args.board == Target::Virt && !parts.is_empty() {
        return Err(CliError::NoCommandLine);
    }
    append(&parts)?;
    if !is_version(&args.host.kernel)
        && let Some(error) = image_form(Path::new(&args.host.kernel))?
    {
        let path = args.host.kernel.clone();
        return Err(DeployError::Bundle { path, error: BundleError::Kernel(error) }.into());
    }
    args.host.initrd.as_deref().map_or(Ok(()), file)?;
    args.output.as_deref().map_or(Ok(()), folder)
}

/// `scripts/bench`.
pub(super) fn bench(args: &BenchArgs) -> Result<(), CliError> {
    let Some(json) = &args.json else { return Ok(()) };
    if json.is_dir() {
        return Err(CheckError::Folder(json.display().to_string()).into());
    }
    // The folder is made if it is not there.
    folder(json.parent().unwrap_or(&PathBuf::new()))
}

#[cfg(test)]
mod tests;
