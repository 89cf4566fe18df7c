//! What the mini host starts: an archive with `config` and every VM's images, device tree and manifest, as `kserv_model` reads it.

use crate::{
    error::{FileError, read},
    initrd::{self, Extra, InitrdError},
    newc::Archive,
    project::{Kernel, Project},
    sign::{Image, Key, SignError},
};
use kserv_model::{
    config::Kind,
    fdt,
    image::{self, PlaceError, Placement},
    vm::GicVersion,
};
use std::path::PathBuf;
use thiserror::Error;

/// The start of an Image's command line.
pub const APPEND: &str = "console=ttyAMA0 panic=-1 quiet";
/// Memory of a VM with an Image.
const IMAGE_MEMORY: u64 = 256 << 20;
/// Memory of a VM with a flat binary.
const FLAT_MEMORY: u64 = 16 << 20;

/// What a VM runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A file: an arm64 Image or a flat binary.
    File(PathBuf),
    /// Debian's kernel of a version, with busybox.
    Debian(String),
    /// One of tests/guests.
    Guest(String),
}

impl Payload {
    /// What `--vm` names: a file, `debian` or `debian-VERSION`, `guest:NAME`. `version`: Debian's usual one.
    pub fn named(text: &str, version: &str) -> Self {
        match text.strip_prefix("debian") {
            Some("") => return Self::Debian(version.to_owned()),
            Some(rest) if rest.strip_prefix('-').is_some_and(crate::project::is_version) => {
                return Self::Debian(rest[1..].to_owned());
            }
            _ => {}
        }
        match text.strip_prefix("guest:") {
            Some(name) => Self::Guest(name.to_owned()),
            None => Self::File(text.into()),
        }
    }
}

/// A VM to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    payload: Payload,
    initrd: Option<PathBuf>,
    append: String,
    vcpus: usize,
    memory: Option<u64>,
    protected: bool,
    script: Option<Vec<u8>>,
    tampered: bool,
}

impl Vm {
    /// An ordinary VM with one vCPU.
    pub fn new(payload: Payload) -> Self {
        Self {
            payload,
            initrd: None,
            append: String::new(),
            vcpus: 1,
            memory: None,
            protected: false,
            script: None,
            tampered: false,
        }
    }

    /// One of tests/guests.
    pub fn guest(name: &str) -> Self {
        Self::new(Payload::Guest(name.to_owned()))
    }

    /// Debian's kernel with busybox.
    pub fn debian(version: &str) -> Self {
        Self::new(Payload::Debian(version.to_owned()))
    }

    /// Another initrd.
    #[must_use]
    pub fn initrd(mut self, file: impl Into<PathBuf>) -> Self {
        self.initrd = Some(file.into());
        self
    }

    /// More for the command line.
    #[must_use]
    pub fn append(mut self, args: &str) -> Self {
        if !self.append.is_empty() {
            self.append.push(' ');
        }
        self.append.push_str(args);
        self
    }

    /// Its vCPUs.
    #[must_use]
    pub fn vcpus(mut self, vcpus: usize) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Its memory in bytes.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Whether the host must not see into it.
    #[must_use]
    pub fn protected(mut self, protected: bool) -> Self {
        self.protected = protected;
        self
    }

    /// Debian: a script to run in place of a shell, then power off.
    #[must_use]
    pub fn script(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.script = Some(text.into());
        self
    }

    /// For tests: the kernel is changed after it was signed.
    #[must_use]
    pub fn tampered(mut self) -> Self {
        self.tampered = true;
        self
    }
}

/// What the mini host cannot be given.
#[derive(Debug, Error)]
pub enum VmError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Debian's initramfs cannot be made.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// A kernel that does not start as it is, or does not fit.
    #[error("{vm}: {what}: {error}")]
    Place {
        /// The VM.
        vm: String,
        /// The kernel's file.
        what: String,
        /// Why.
        error: PlaceError,
    },
    /// Larger than the VM.
    #[error("{vm}: it has {has} MiB of memory, and its images reach to {needs} MiB: give it more (--vm-memory)")]
    Memory {
        /// The VM.
        vm: String,
        /// What it has.
        has: u64,
        /// What it needs.
        needs: u64,
    },
    /// Something that no machine loads.
    #[error("{vm}: {what} is an ELF file: make a flat binary of it (llvm-objcopy -O binary)")]
    Elf {
        /// The VM.
        vm: String,
        /// The kernel's file.
        what: String,
    },
    /// There is no such guest.
    #[error("there is no guest called {name}; there are: {known}")]
    Guest {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// It cannot be signed.
    #[error("{vm}: {error}")]
    Sign {
        /// The VM.
        vm: String,
        /// Why.
        error: SignError,
    },
}

/// VMs and what else the mini host is told.
#[derive(Clone, Debug, Default)]
pub struct Vms {
    vms: Vec<Vm>,
    lines: Vec<String>,
}

impl Vms {
    /// No VM yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more VM: the first is called vm0.
    #[must_use]
    pub fn vm(mut self, vm: Vm) -> Self {
        self.vms.push(vm);
        self
    }

    /// One more line of `config`: `demo`.
    #[must_use]
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Two protected VMs and an ordinary one at work, and a host that tries to read them.
    pub fn demo() -> Self {
        let worker = |protected| Vm::guest("worker").append("rounds=60 sleep=100").protected(protected);
        Self::new().vm(worker(true)).vm(worker(true)).vm(worker(false)).line("demo")
    }

    /// Protected VMs that are sealed amid their work and go on (kserv/mini/src/checks/snapshot.rs).
    pub fn for_snapshot() -> Self {
        let worker = Vm::guest("worker").append("rounds=40 sleep=10").protected(true);
        let registers = Vm::guest("registers").vcpus(2).append("rounds=3000").protected(true);
        Self::new().vm(worker).vm(registers)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.vms.is_empty()
    }

    /// The archive. `gic`: the machine's interrupt controller, which the VMs get too. `key` signs what is protected.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn archive(&self, project: &Project, gic: GicVersion, key: &Key) -> Result<Vec<u8>, VmError> {
        let mut archive = Archive::new();
        let mut config = String::new();
        for line in &self.lines {
            config.push_str(line);
            config.push('\n');
        }
        // What many VMs have is in the archive once.
        let mut files: Vec<(Vec<u8>, String)> = Vec::new();
        for (number, vm) in self.vms.iter().enumerate() {
            let name = format!("vm{number}");
            let ready = vm.prepare(project, &name, gic, key)?;
            let mut words = format!("vm name={name}");
            for (what, content) in ready.files {
                let path = match files.iter().find(|(known, _)| *known == content) {
                    Some((_, path)) => path.clone(),
                    None => {
                        let path = format!("{name}/{what}");
                        archive.file(&path, 0o644, &content);
                        files.push((content, path.clone()));
                        path
                    }
                };
                words.push_str(&format!(" {what}={path}"));
            }
            let place = ready.place;
            let kind = if place.kind == Kind::Image { "image" } else { "flat" };
            config.push_str(&format!(
                "{words} vcpus={} memory={} protected={} kind={kind} load={:#x} entry={:#x}\n",
                vm.vcpus,
                ready.memory,
                u8::from(vm.protected),
                place.load,
                place.entry
            ));
        }
        archive.file("config", 0o644, config.as_bytes());
        Ok(archive.finish())
    }
}

/// The file of a guest of tests/guests. One that is not built yet is missed by whoever reads it.
///
/// # Errors
/// [`VmError::Guest`].
pub(crate) fn known_guest(project: &Project, name: &str) -> Result<PathBuf, VmError> {
    let known = project.guests();
    if known.is_empty() || known.iter().any(|other| other == name) {
        return Ok(project.guest(name));
    }
    Err(VmError::Guest { name: name.to_owned(), known: known.join(", ") })
}

struct Ready {
    place: Placement,
    memory: u64,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Vm {
    fn prepare(&self, project: &Project, name: &str, gic: GicVersion, key: &Key) -> Result<Ready, VmError> {
        let (kernel_path, mut initrd) = match &self.payload {
            Payload::File(file) => (file.clone(), None),
            Payload::Guest(guest) => (known_guest(project, guest)?, None),
            Payload::Debian(version) => {
                let kernel = Kernel::resolve(project, version)?;
                let initrd = if self.initrd.is_none() { Some(self.busybox(project, &kernel)?) } else { None };
                (kernel.image, initrd)
            }
        };
        let mut kernel = read(&kernel_path)?;
        if let Some(own) = &self.initrd {
            initrd = Some(read(own)?);
        }
        let (place, memory) = self.place(name, &kernel_path.display().to_string(), &kernel, initrd.as_deref())?;
        let bootargs = match place.kind {
            Kind::Image => [APPEND, &self.append].join(" "),
            Kind::Flat => self.append.clone(),
        };
        let machine = fdt::Machine { vcpus: self.vcpus, memory, gic, bootargs: bootargs.trim(), initrd: place.initrd };
        let tree = fdt::build(&machine);
        let manifest = if self.protected {
            let mut images =
                vec![Image { gpa: place.load, content: &kernel }, Image { gpa: place.dtb, content: &tree }];
            if let (Some(content), Some((gpa, _))) = (&initrd, place.initrd) {
                images.push(Image { gpa, content });
            }
            let signed = key.sign(&images, place.entry, place.dtb);
            Some(signed.map_err(|error| VmError::Sign { vm: name.to_owned(), error })?)
        } else {
            None
        };
        if self.tampered
            && let Some(last) = kernel.last_mut()
        {
            *last ^= 1;
        }
        let files = [("kernel", Some(kernel)), ("dtb", Some(tree)), ("initrd", initrd), ("manifest", manifest)];
        let files = files.into_iter().filter_map(|(what, content)| Some((what, content?))).collect();
        Ok(Ready { place, memory, files })
    }

    fn place(&self, name: &str, what: &str, kernel: &[u8], initrd: Option<&[u8]>) -> Result<(Placement, u64), VmError> {
        let kind = image::kind_of(kernel);
        let vm = name.to_owned();
        let wrong = |error| VmError::Place { vm: vm.clone(), what: what.to_owned(), error };
        if kernel.starts_with(b"\x7fELF") {
            return Err(VmError::Elf { vm, what: what.to_owned() });
        }
        // Compressed kernels would be taken for flat binaries.
        if let Err(error @ (PlaceError::Gzip | PlaceError::Zboot)) = image::ImageHeader::parse(kernel) {
            return Err(wrong(error));
        }
        let memory = self.memory.unwrap_or(if kind == Kind::Image { IMAGE_MEMORY } else { FLAT_MEMORY });
        match image::place(kind, kernel, initrd.map(|file| file.len() as u64), memory) {
            Ok(place) => Ok((place, memory)),
            Err(PlaceError::NeedsMemory(needs)) => {
                Err(VmError::Memory { vm, has: memory >> 20, needs: needs.div_ceil(1 << 20) })
            }
            Err(error) => Err(wrong(error)),
        }
    }

    /// Debian's initramfs, with the script if there is one.
    fn busybox(&self, project: &Project, kernel: &Kernel) -> Result<Vec<u8>, VmError> {
        let mut file = read(&initrd::base(project, kernel)?)?;
        if let Some(script) = &self.script {
            file.resize(file.len().next_multiple_of(4), 0);
            file.extend(Extra { script: Some(script.clone()), files: Vec::new() }.archive());
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::verify;
    use kserv_model::{
        archive,
        config::{Line, VmConfig, lines},
    };

    fn key() -> Key {
        Key::from_seed([7; 32])
    }

    struct Made(Vec<u8>);

    impl Made {
        fn of(vms: &Vms) -> Self {
            Self(vms.archive(&Project::at("/nowhere"), GicVersion::V3, &key()).unwrap())
        }

        fn file(&self, name: &str) -> &[u8] {
            archive::Archive::new(&self.0).find(name).unwrap()
        }

        fn lines(&self) -> Vec<Line<'_>> {
            lines(self.file("config")).map(|line| line.unwrap()).collect()
        }

        fn vm(&self, number: usize) -> VmConfig<'_> {
            let vms: Vec<_> = self.lines().into_iter().filter(|line| matches!(line, Line::Vm(_))).collect();
            match vms[number] {
                Line::Vm(vm) => vm,
                other => panic!("{other:?}"),
            }
        }
    }

    fn file(content: &[u8]) -> (tempfile::TempDir, Payload) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, content).unwrap();
        (dir, Payload::File(path))
    }

    #[test]
    fn names_of_payloads() {
        assert_eq!(Payload::named("debian", "6.12"), Payload::Debian("6.12".into()));
        assert_eq!(Payload::named("debian-6.1", "6.12"), Payload::Debian("6.1".into()));
        assert_eq!(Payload::named("guest:hello", ""), Payload::Guest("hello".into()));
        for other in ["debian.img", "debian-x", "dir/debian", "hello"] {
            assert_eq!(Payload::named(other, ""), Payload::File(other.into()));
        }
    }

    #[test]
    fn the_mini_host_reads_what_is_written() {
        let (_dir, payload) = file(&[0x11; 5000]);
        let vm = Vm::new(payload).vcpus(2).memory(32 << 20).append("rounds=3");
        let made = Made::of(&Vms::new().line("demo").vm(vm.clone().protected(true)).vm(vm));
        assert_eq!(made.lines()[0], Line::Option("demo", None));
        let (first, second) = (made.vm(0), made.vm(1));
        assert_eq!((first.name, first.vcpus, first.memory, first.protected), ("vm0", 2, 32 << 20, true));
        assert_eq!((first.kind, first.load, first.entry), (Kind::Flat, 0x4008_0000, 0x4008_0000));
        assert_eq!((second.name, second.protected, second.manifest), ("vm1", false, None));
        assert_eq!(made.file(first.kernel), [0x11; 5000]);
        // The same files are there once.
        assert_eq!((first.kernel, first.dtb), (second.kernel, second.dtb));
        let tree = made.file(first.dtb);
        assert!(tree.windows(8).any(|text| text == b"rounds=3"));
    }

    #[test]
    fn what_is_protected_is_signed_as_it_is_loaded() {
        let (_dir, payload) = file(&[0x11; 5000]);
        let vm = Vm::new(payload).protected(true);
        let check = |vm: Vm| {
            let made = Made::of(&Vms::new().vm(vm));
            let vm = made.vm(0);
            let images = [
                Image { gpa: vm.load, content: made.file(vm.kernel) },
                Image { gpa: 0x4000_0000, content: made.file(vm.dtb) },
            ];
            verify(made.file(vm.manifest.unwrap()), key().public(), &images, Some((vm.entry, 0x4000_0000)))
        };
        assert_eq!(check(vm.clone()), Ok(()));
        assert!(check(vm.tampered()).is_err());
    }

    #[test]
    fn what_cannot_start_says_why() {
        let refused = |content: &[u8], memory: u64| {
            let (_dir, payload) = file(content);
            let vms = Vms::new().vm(Vm::new(payload).memory(memory));
            vms.archive(&Project::at("/nowhere"), GicVersion::V2, &key()).unwrap_err().to_string()
        };
        assert!(refused(&[0x1f, 0x8b, 8, 0], 16 << 20).contains("gzip"));
        assert!(refused(b"\x7fELF", 16 << 20).contains("flat binary"));
        assert!(refused(&[], 16 << 20).contains("empty"));
        let text = refused(&[1; 1 << 20], 1 << 20);
        assert!(text.contains("1 MiB of memory") && text.contains("2 MiB") && text.contains("--vm-memory"), "{text}");
    }
}
