//! A Linux host that runs VMs by `/dev/kvm`, with Debian's own QEMU in it.
//!
//! [`KvmHost::equip`] gives a [`Run`] what that takes: a disk with QEMU (`scripts/setup kvm-host`), one with the guest's kernel,
//! the modules for both, the guest's initrd, the driver, and [`FUNCTIONS`] for the host's script. A board without virtio has what would
//! be on the disks in its initramfs.

use crate::{
    error::{FileError, read},
    initrd::{self, Extra, InitrdError},
    kvm_protected::{self, GuestShape, ProtectedError, Signed},
    machine::{Board, Machine},
    modules::{ModuleError, load_list},
    project::{Kernel, Project},
    run::Run,
    sign::Key,
};
use kserv_model::vm::GicVersion;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;

/// Shell functions for the host's script: `kvm_up`, `vm` and others; it has them by [`USE`].
pub const FUNCTIONS: &str = include_str!("../kvm/host.sh");
/// Where they are.
const FUNCTIONS_PATH: &str = "/etc/corevisor/kvm.sh";
/// The first line of a script that wants them.
pub const USE: &str = ". /etc/corevisor/kvm.sh\n";
/// What the disk's file system is made of. Which of these is a module differs from kernel to kernel.
const MODULES: &[&str] = &["ext4"];
/// ext4 asks for its checksum by name; a bridge and its ends.
const OPTIONAL_MODULES: &[&str] = &["crc32c_generic", "tun", "bridge"];
/// [`MODULES`] where the disks are files.
const MODULES_FOR_FILES: &[&str] = &["loop", "ext4"];
/// Where these are.
const DISKS: &str = "/disks";

/// Who emulates the interrupt controller of a VM, and which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GuestGic {
    /// QEMU, a GICv2.
    #[default]
    Off,
    /// The host's kernel, a GICv2: for machines with a GICv2.
    #[value(name = "2")]
    V2,
    /// The host's kernel, a GICv3: for machines with a GICv3.
    #[value(name = "3")]
    V3,
}

impl GuestGic {
    /// As the functions in the host have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::V2 => "2",
            Self::V3 => "3",
        }
    }

    /// Whether the interrupt controller of a machine can serve it.
    pub fn works_on(self, machine: GicVersion) -> bool {
        match self {
            Self::Off => true,
            Self::V2 => machine == GicVersion::V2,
            Self::V3 => machine == GicVersion::V3,
        }
    }
}

/// The host cannot be made.
#[derive(Debug, Error)]
pub enum KvmError {
    /// A file is missing.
    #[error(transparent)]
    File(#[from] FileError),
    /// A guest's initramfs cannot be made.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// A module of the host's kernel is missing.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// A protected guest cannot be signed.
    #[error(transparent)]
    Protected(#[from] ProtectedError),
    /// A kernel file without modules.
    #[error("{0}: the host needs modules (ext4), and no kernel of its release is in target/host: name a version")]
    NoModules(String),
    /// The machine's interrupt controller is another one.
    #[error("a guest with the GICv{guest} of the host's kernel needs a machine with that: add --gic {guest}")]
    Gic {
        /// What the guest was to have.
        guest: &'static str,
    },
}

/// Which `/dev/kvm` the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's own: it must have started at EL2.
    Own,
    /// This module.
    Module(PathBuf),
}

/// What goes into the host.
#[derive(Clone, Debug)]
pub struct KvmHost {
    project: Project,
    kernel: String,
    driver: Driver,
    guest_kernel: String,
    guest: Extra,
    protected: Option<(GuestShape, Arc<Key>)>,
    tampered: bool,
}

impl KvmHost {
    /// A host with the kernel `kernel` (a version or a file) and a guest with Debian's 6.12.
    pub fn new(project: &Project, kernel: &str, driver: Driver) -> Self {
        Self {
            project: project.clone(),
            kernel: kernel.to_owned(),
            driver,
            guest_kernel: "6.12".to_owned(),
            guest: Extra { script: None, files: vec![(NAME_PATH.to_owned(), b"guest\n".to_vec())] },
            protected: None,
            tampered: false,
        }
    }

    /// The guest's kernel: a version or a file.
    #[must_use]
    pub fn guest_kernel(mut self, what: impl Into<String>) -> Self {
        self.guest_kernel = what.into();
        self
    }

    /// A script for the guest's shell, in place of a shell; then it powers off.
    #[must_use]
    pub fn guest_script(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.guest.script = Some(text.into());
        self
    }

    /// A file for the guest, by its absolute path.
    #[must_use]
    pub fn guest_file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.guest.files.push((path.into(), content.into()));
        self
    }

    /// The guest is a protected one, of this shape and no other, signed with this key. The core is given its public key.
    #[must_use]
    pub fn protected(mut self, shape: GuestShape, key: Key) -> Self {
        self.protected = Some((shape, Arc::new(key)));
        self
    }

    /// For tests: the guest's initrd is changed after it was signed.
    #[must_use]
    pub fn tampered(mut self) -> Self {
        self.tampered = true;
        self
    }

    /// `run` with all that in it. Its own script, if it has one, begins with [`USE`].
    ///
    /// # Errors
    /// [`KvmError`] names what is missing.
    pub fn equip(&self, run: Run) -> Result<Run, KvmError> {
        self.files(self.disks(run))
    }

    /// `run` with the disks, whether their files are there or not, if the board can have some.
    pub fn disks(&self, mut run: Run) -> Run {
        if run.machine.board() == Board::Virt {
            for (name, file) in self.on_disks() {
                run.machine = with_disk(run.machine, name, &file);
            }
        }
        match &self.protected {
            Some((_, key)) => run.trusted(key.public()),
            None => run,
        }
    }

    /// What each disk has, by the name that the host looks for.
    fn on_disks(&self) -> [(&'static str, PathBuf); 2] {
        [("qemu", self.project.kvm_disk()), ("guest", Kernel::image_path(&self.project, &self.guest_kernel))]
    }

    /// `run` with all but the disks, which must be there.
    ///
    /// # Errors
    /// [`KvmError`] names what is missing.
    pub fn files(&self, mut run: Run) -> Result<Run, KvmError> {
        let kernel = Kernel::resolve(&self.project, &self.kernel)?;
        let guest = Kernel::resolve(&self.project, &self.guest_kernel)?;
        let modules = kernel.modules.as_ref().ok_or_else(|| KvmError::NoModules(self.kernel.clone()))?;
        let has_disks = run.machine.board() == Board::Virt;
        let names = if has_disks { MODULES } else { MODULES_FOR_FILES };
        let mut list = String::new();
        for module in load_list(&modules.dir, names, OPTIONAL_MODULES)? {
            run = run.file(format!("/lib/modules/{}/{}", modules.release, module.path), module.content);
            list.push_str(&module.path);
            list.push('\n');
        }
        run = run.file("/etc/corevisor/kvm-modules", list).file(FUNCTIONS_PATH, FUNCTIONS);
        if let Driver::Module(file) = &self.driver {
            run = run.file("/lib/corevisor_kvm.ko", read(file)?);
        }
        for (name, file) in self.on_disks() {
            std::fs::File::open(&file).map_err(FileError::at("read", &file))?;
            if !has_disks {
                run = run.file(format!("{DISKS}/{name}"), read(&file)?);
            }
        }
        let mut initrd = self.guest_initrd(&guest)?;
        if let Some((shape, key)) = &self.protected {
            let Signed { dtb, manifest } =
                kvm_protected::sign(&self.project.qemu(), shape, &guest.image, &initrd, key)?;
            run = run.file("/guest/dtb", dtb).file("/guest/manifest", manifest);
        }
        if self.tampered
            && let Some(last) = initrd.last_mut()
        {
            *last ^= 1;
        }
        Ok(run.file("/guest/initrd", initrd))
    }

    fn guest_initrd(&self, kernel: &Kernel) -> Result<Vec<u8>, KvmError> {
        let mut initrd = read(&initrd::base(&self.project, kernel)?)?;
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend(self.guest.archive());
        Ok(initrd)
    }
}

/// Where `/init` looks for what it calls itself.
const NAME_PATH: &str = "/etc/corevisor/name";

/// A read-only virtio disk that the host finds by `name`.
fn with_disk(machine: Machine, name: &str, file: &Path) -> Machine {
    let drive = crate::machine::option_with_path(&format!("if=none,id={name},format=raw,readonly=on,file="), file);
    let device = machine.virtio("blk", &format!("drive={name},serial={name}"));
    machine.arg("-drive").arg(drive).arg("-device").arg(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_the_interrupt_controller_that_the_machine_has() {
        assert!(GuestGic::Off.works_on(GicVersion::V2) && GuestGic::Off.works_on(GicVersion::V3));
        assert!(GuestGic::V2.works_on(GicVersion::V2) && !GuestGic::V2.works_on(GicVersion::V3));
        assert!(GuestGic::V3.works_on(GicVersion::V3) && !GuestGic::V3.works_on(GicVersion::V2));
    }

    #[test]
    fn the_disks_have_the_names_that_the_host_looks_for() {
        let project = Project::at("/p");
        let run = Run::new(&project, Machine::virt());
        let run = KvmHost::new(&project, "6.12", Driver::Own).disks(run);
        let line = format!("{:?}", run.machine);
        for name in ["qemu", "guest"] {
            assert!(line.contains(&format!("serial={name}")), "{line}");
            assert!(FUNCTIONS.contains(&format!("disk_called {name})")), "{name}");
        }
        assert!(USE.contains(FUNCTIONS_PATH) && FUNCTIONS.contains(&format!("[ ! -f \"{DISKS}/$1\" ]")));
    }

    #[test]
    fn a_board_without_virtio_gets_no_disk() {
        let project = Project::at("/p");
        let run = KvmHost::new(&project, "6.12", Driver::Own).disks(Run::new(&project, Machine::raspi4b()));
        assert!(!format!("{:?}", run.machine).contains("serial="));
    }

    #[test]
    fn missing_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project::at(dir.path());
        let host = KvmHost::new(&project, "6.12", Driver::Own);
        assert!(matches!(host.equip(Run::new(&project, Machine::virt())), Err(KvmError::File(_))));
    }
}
