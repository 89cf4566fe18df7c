//! Where things stand under `target/`.

use crate::error::{FileError, read, read_text};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The folders of this project.
#[derive(Clone, Debug)]
pub struct Project {
    root: PathBuf,
}

/// The project's folder was not found.
#[derive(Debug, Error)]
#[error("no project found at or above {0}: run this inside corevisor's folder, or set COREVISOR_ROOT to it")]
pub struct NoProject(String);

impl Project {
    /// The project around the current folder, or the one that `COREVISOR_ROOT` names.
    ///
    /// # Errors
    /// [`NoProject`] if neither is one.
    pub fn find() -> Result<Self, NoProject> {
        let start = match std::env::var_os("COREVISOR_ROOT") {
            Some(root) => PathBuf::from(root),
            None => std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
        };
        start
            .ancestors()
            .find(|dir| dir.join("scripts/tool/Cargo.toml").is_file())
            .map(Self::at)
            .ok_or_else(|| NoProject(start.display().to_string()))
    }

    /// The project in this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `scripts/setup` provides.
    pub fn host(&self) -> PathBuf {
        self.root.join("target/host")
    }

    /// The core's flat image.
    pub fn core(&self) -> PathBuf {
        self.root.join("target/image/corevisor.bin")
    }

    /// The core with its symbols, for a debugger.
    pub fn core_elf(&self) -> PathBuf {
        self.root.join("target/aarch64-unknown-none-softfloat/release/corevisor")
    }

    /// Where runs keep their files.
    pub fn runs(&self) -> PathBuf {
        self.root.join("target/run")
    }

    /// The mini host with its symbols.
    pub fn mini_elf(&self) -> PathBuf {
        self.root.join("target/mini/aarch64-unknown-none-softfloat/release/kserv-mini")
    }

    /// The mini host's flat image.
    pub fn mini(&self) -> PathBuf {
        self.root.join("target/image/kserv-mini.bin")
    }

    /// One of tests/guests.
    pub fn guest(&self, name: &str) -> PathBuf {
        self.root.join(format!("target/guests/{name}.bin"))
    }

    /// The names of tests/guests, built or not.
    pub fn guests(&self) -> Vec<String> {
        let sources = std::fs::read_dir(self.root.join("tests/guests/src/bin")).into_iter().flatten().flatten();
        let names = sources.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".rs")?.to_owned()));
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names
    }

    /// The key that signs VMs unless another one is named.
    pub fn development_key(&self) -> PathBuf {
        self.root.join("target/keys/development.pem")
    }

    /// The core's interface in C.
    pub fn c_header(&self) -> PathBuf {
        self.root.join("kserv/linux/include/corevisor.h")
    }

    /// busybox for the host.
    pub fn busybox(&self) -> PathBuf {
        self.host().join("busybox")
    }

    /// The disk with Debian's QEMU, for a host that runs VMs.
    pub fn kvm_disk(&self) -> PathBuf {
        self.host().join("kvm/root.img")
    }

    /// The Linux driver, built for one of Debian's kernels.
    pub fn driver(&self, kernel: &str) -> PathBuf {
        self.root.join(format!("target/driver/{kernel}/corevisor_kvm.ko"))
    }

    /// The Raspberry Pi 4's device tree, as its kernel ships it.
    pub fn pi_dtb(&self) -> PathBuf {
        self.host().join("bcm2711-rpi-4-b.dtb")
    }

    /// A board's device tree, as Debian's 6.12 ships it: maker and file.
    pub fn board_dtb(&self, name: &str) -> PathBuf {
        self.host().join("dtbs").join(name)
    }

    /// QEMU for arm64: the one that `QEMU` names, or the one on the path.
    pub fn qemu(&self) -> PathBuf {
        std::env::var_os("QEMU").filter(|named| !named.is_empty()).map_or("qemu-system-aarch64".into(), PathBuf::from)
    }
}

/// A host kernel: its image, and its modules if they are at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The arm64 `Image`.
    pub image: PathBuf,
    /// The tree of `lib/modules/<release>`.
    pub modules: Option<Modules>,
    /// A short name for files made for it: "6.12".
    pub name: String,
}

/// A kernel's modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modules {
    /// The folder that holds `modules.dep`.
    pub dir: PathBuf,
    /// The kernel's release, the folder's name in the host's `/lib/modules`.
    pub release: String,
}

impl Kernel {
    /// Where the image of `what` is, whether it is there or not.
    pub fn image_path(project: &Project, what: &str) -> PathBuf {
        if is_version(what) { project.host().join(what).join("Image") } else { what.into() }
    }

    /// What `--kernel` names: a version that set-up provides ("6.12"), else a file.
    ///
    /// For a file the modules are those of a provided kernel of the same release, if there is one.
    ///
    /// # Errors
    /// When a file that should be there cannot be read.
    pub fn resolve(project: &Project, what: &str) -> Result<Self, FileError> {
        if is_version(what) {
            let dir = project.host().join(what);
            return Ok(Self {
                image: Self::image_path(project, what),
                modules: Some(Modules {
                    release: read_text(&dir.join("release"))?.trim().to_owned(),
                    dir: dir.join("modules"),
                }),
                name: what.to_owned(),
            });
        }
        let image = PathBuf::from(what);
        let release = crate::arm64_image::linux_release(&read(&image)?);
        let modules = release.and_then(|release| {
            let dirs = std::fs::read_dir(project.host()).ok()?;
            let same = |dir: &PathBuf| std::fs::read_to_string(dir.join("release")).is_ok_and(|r| r.trim() == release);
            let dir = dirs.flatten().map(|dir| dir.path()).find(same)?;
            Some(Modules { dir: dir.join("modules"), release })
        });
        let name = modules.as_ref().map_or_else(|| "other".to_owned(), |modules| modules.release.clone());
        Ok(Self { image, modules, name })
    }
}

/// Whether `--kernel` names a version to be provided, not a file: digits and dots only.
pub fn is_version(what: &str) -> bool {
    what.contains('.') && what.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn versions_are_told_from_files() {
        assert!(is_version("6.12") && is_version("6.1"));
        for file in ["Image", "./6.12", "6.12/Image", "vmlinuz-6.1", "6.", ".", ""] {
            assert!(!is_version(file), "{file}");
        }
    }

    #[test]
    fn a_kernel_file_finds_the_modules_of_its_release() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project::at(dir.path());
        fs::create_dir_all(project.host().join("6.12")).unwrap();
        fs::write(project.host().join("6.12/release"), "6.12.9-x\n").unwrap();
        let file = dir.path().join("Image");
        fs::write(&file, b"...Linux version 6.12.9-x (me)").unwrap();

        let expected = Modules { dir: project.host().join("6.12/modules"), release: "6.12.9-x".into() };
        let by_file = Kernel::resolve(&project, file.to_str().unwrap()).unwrap();
        assert_eq!(by_file.modules.as_ref(), Some(&expected));
        assert_eq!(Kernel::resolve(&project, "6.12").unwrap().modules, Some(expected));

        fs::write(&file, b"another kernel").unwrap();
        assert_eq!(Kernel::resolve(&project, file.to_str().unwrap()).unwrap().modules, None);
    }
}
