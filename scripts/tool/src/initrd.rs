//! The host's initramfs.
//!
//! A base for each kernel (busybox with its applets, the virtio modules, [`/init`](INIT)), kept between runs, and
//! a small second archive behind it with what one run adds: a script, extra files.

use crate::{
    error::{FileError, read, write},
    modules::{ModuleError, load_list},
    newc::Archive,
    project::{Kernel, Project},
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// The host's first process, a shell script.
pub const INIT: &str = include_str!("../initrd/init");
/// Where `/init` looks for the script to run.
pub const SCRIPT_PATH: &str = "/etc/corevisor/run.sh";
/// What the host loads at its start, with what these need.
pub const MODULES: &[&str] = &["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net"];

/// Loaded too where the kernel has it: with it the Raspberry Pi's watchdog can cut the power.
pub const OPTIONAL_MODULES: &[&str] = &["bcm2835_wdt"];

/// The initramfs cannot be made.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A module is missing or broken.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// busybox's own list of its applets was not found.
    #[error("{0} does not look like busybox: its list of applets is not there (scripts/setup busybox makes a new one)")]
    Busybox(String),
}

/// What one run adds to the base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// The script to run instead of a shell; an empty one shows the banner and powers off.
    pub script: Option<Vec<u8>>,
    /// Files by their absolute path, executable for all.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Extra {
    /// Whether there is nothing to add.
    pub fn is_empty(&self) -> bool {
        self.script.is_none() && self.files.is_empty()
    }

    /// The archive to put behind a base.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Archive::new();
        for (path, content) in &self.files {
            archive.file(path, 0o755, content);
        }
        if let Some(script) = &self.script {
            archive.file(SCRIPT_PATH, 0o755, script);
        }
        archive.finish()
    }
}

/// The base for a kernel: the file's path. Made now if what goes into it has changed since it was last made.
///
/// # Errors
/// [`InitrdError`] names the file that is missing or broken.
pub fn base(project: &Project, kernel: &Kernel) -> Result<PathBuf, InitrdError> {
    let path = project.runs().join(format!("initrd-{}-{:08x}.cpio", kernel.name, fingerprint(project, kernel)));
    if !path.exists() {
        write(&path, &[&build(&project.busybox(), kernel)?])?;
    }
    Ok(path)
}

/// A number that changes when an input does, without reading the large ones.
fn fingerprint(project: &Project, kernel: &Kernel) -> u32 {
    let stamp =
        |path: &Path| fs::metadata(path).map(|m| (m.len(), m.mtime(), m.mtime_nsec(), m.ino())).unwrap_or_default();
    let modules = kernel.modules.as_ref().map(|modules| (&modules.release, stamp(&modules.dir.join("modules.dep"))));
    let said = format!("{INIT}{MODULES:?}{:?}{modules:?}{}", stamp(&project.busybox()), env!("CARGO_PKG_VERSION"));
    crc32c::crc32c(said.as_bytes())
}

fn build(busybox: &Path, kernel: &Kernel) -> Result<Vec<u8>, InitrdError> {
    let busybox_file = read(busybox)?;
    let applets = applets(&busybox_file).ok_or_else(|| InitrdError::Busybox(busybox.display().to_string()))?;

    let mut archive = Archive::new();
    for dir in ["/bin", "/dev", "/etc/corevisor", "/proc", "/root", "/sys", "/tmp", "/mnt"] {
        archive.dir(dir);
    }
    for link in ["/sbin", "/usr/bin", "/usr/sbin"] {
        archive.symlink(link, "/bin");
    }
    archive.char_device("/dev/console", 0o600, 5, 1);
    archive.char_device("/dev/null", 0o666, 1, 3);
    archive.file("/init", 0o755, INIT.as_bytes());
    archive.file("/bin/busybox", 0o755, &busybox_file);
    for applet in applets {
        archive.symlink(&format!("/bin/{applet}"), "busybox");
    }
    if let Some(modules) = &kernel.modules {
        let mut list = String::new();
        for module in load_list(&modules.dir, MODULES, OPTIONAL_MODULES)? {
            archive.file(&format!("/lib/modules/{}/{}", modules.release, module.path), 0o644, &module.content);
            list.push_str(&module.path);
            list.push('\n');
        }
        archive.file("/etc/corevisor/modules", 0o644, list.as_bytes());
    }
    Ok(archive.finish())
}

/// The names of busybox's applets: the sorted list in it, which starts with `[` and `[[` and ends with an empty
/// name. It is an arm64 program, so it cannot be asked.
fn applets(busybox: &[u8]) -> Option<Vec<&str>> {
    const FIRST: &[u8] = b"[\0[[\0";
    let starts = busybox.windows(FIRST.len()).enumerate().filter(|(_, window)| *window == FIRST);
    starts
        .map(|(start, _)| names(&busybox[start..]))
        .find(|list| ["sh", "mount", "insmod", "poweroff"].iter().all(|needed| list.contains(needed)))
}

/// The names in `bytes`, each ended by a zero, up to an empty one or to something that is no name.
fn names(bytes: &[u8]) -> Vec<&str> {
    let plain = |name: &&str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"[._-+".contains(&b));
    bytes
        .split(|byte| *byte == 0)
        .take_while(|name| !name.is_empty())
        .map_while(|name| std::str::from_utf8(name).ok().filter(plain))
        .filter(|name| *name != "busybox")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::newc::tests::entries;

    const BUSYBOX: &[u8] = b"\x7fELF..x[\0[[\0insmod\0mount\0poweroff\0sh\0\0more text\0";

    #[test]
    fn busyboxs_applets_are_read_from_its_own_list() {
        assert_eq!(applets(BUSYBOX).unwrap(), ["[", "[[", "insmod", "mount", "poweroff", "sh"]);
        assert_eq!(applets(b"\x7fELF no list"), None);
        assert_eq!(applets(b"[\0[[\0sh\0\0"), None);
    }

    #[test]
    fn the_base_has_init_busybox_and_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project::at(dir.path());
        fs::create_dir_all(project.host()).unwrap();
        fs::write(project.busybox(), BUSYBOX).unwrap();
        let kernel = Kernel { image: "Image".into(), modules: None, name: "other".into() };
        let path = base(&project, &kernel).unwrap();
        let list = entries(&fs::read(&path).unwrap());
        let find = |name: &str| list.iter().find(|(n, ..)| n == name).unwrap();
        assert_eq!(find("init").1, 0o100755);
        assert_eq!(find("bin/sh").2, b"busybox");
        assert_eq!(base(&project, &kernel).unwrap(), path);

        fs::write(project.busybox(), [BUSYBOX, b"newer"].concat()).unwrap();
        assert_ne!(base(&project, &kernel).unwrap(), path);
    }

    #[test]
    fn a_script_goes_where_init_looks_for_it() {
        assert!(INIT.contains(&format!("script={SCRIPT_PATH}\n")));
        let extra = Extra { script: Some(b"true".to_vec()), files: vec![("/lib/a.ko".into(), b"a".to_vec())] };
        let list = entries(&extra.archive());
        assert!(list.iter().any(|(name, mode, text)| {
            name == SCRIPT_PATH.trim_start_matches('/') && *mode == 0o100755 && text == b"true"
        }));
        assert!(list.iter().any(|(name, ..)| name == "lib/a.ko"));
    }
}
