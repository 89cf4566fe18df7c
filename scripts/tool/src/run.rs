//! What to boot and for how long.
//!
//! [`Run`] says it, [`Run::start`] starts QEMU, [`Running`] is the machine while it runs, [`Finished`] what is left of it.
//! A [`Running`] that is dropped takes its QEMU with it, and QEMU also ends when the thread that started it does.

use crate::{
    arm64_image::NotAnImage,
    board_tree,
    bundle::{BundleError, bundle},
    error::{FileError, create_dir, is_missing, read, write},
    given_tree::{self, TreeError},
    initrd::{self, Extra, InitrdError},
    machine::{Board, BootFiles, Console, Machine, MachineError, shell_line},
    project::{Kernel, Project, is_version},
    raspi::DtbError,
    sign::{Key, KeyError},
    vms::{VmError, Vms},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use thiserror::Error;

pub use crate::{
    outcome::{Finished, Outcome, SCRIPT_ENDED},
    running::{NotSeen, Running, cpu_of_children, cpu_of_machines},
};

/// A run cannot be prepared or started.
#[derive(Debug, Error)]
pub enum RunError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The board does not have what was asked for.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The bundle cannot be made.
    #[error("{path}: {error}")]
    Bundle {
        /// The host kernel's file.
        path: String,
        /// Why.
        error: BundleError,
    },
    /// The kernel does not boot as it is.
    #[error("{path}: the kernel does not boot as it is: {error}")]
    Kernel {
        /// Its file.
        path: String,
        /// Why.
        error: NotAnImage,
    },
    /// The initramfs cannot be made.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The Raspberry Pi's device tree cannot be edited.
    #[error(transparent)]
    Dtb(#[from] DtbError),
    /// The core cannot be given its public key.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// No key to sign VMs with.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The mini host's VMs cannot be made.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// QEMU does not start.
    #[error("cannot start {program}: {source} (scripts/setup qemu installs it; QEMU=program takes another one)")]
    Qemu {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What boots.
#[derive(Clone, Debug)]
pub enum Boot {
    /// The core with the host kernel behind it.
    Core,
    /// The core with the mini host behind it, which starts VMs.
    Mini(Vms),
    /// The host kernel alone.
    NoCore,
    /// This file, as it is.
    File(PathBuf),
    /// Nothing from us: firmware given by [`Machine::arg`].
    Nothing,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Run {
    pub(crate) project: Project,
    pub(crate) machine: Machine,
    boot: Boot,
    core: PathBuf,
    kernel: String,
    initrd: Option<PathBuf>,
    no_initrd: bool,
    pub(crate) extra: Extra,
    append: Vec<String>,
    whole_append: Option<String>,
    dtb: Option<PathBuf>,
    key: Option<PathBuf>,
    trusted: Option<[u8; 32]>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) stop_at: Vec<String>,
    pub(crate) echo: bool,
    pub(crate) terminal: bool,
    pub(crate) interrupt: Option<Arc<AtomicUsize>>,
}

impl Run {
    /// A run of the core with the host kernel 6.12 and its initramfs, no script, no limit of time.
    pub fn new(project: &Project, machine: Machine) -> Self {
        Self {
            core: project.core(),
            project: project.clone(),
            machine,
            boot: Boot::Core,
            kernel: "6.12".to_owned(),
            initrd: None,
            no_initrd: false,
            extra: Extra::default(),
            append: Vec::new(),
            whole_append: None,
            dtb: None,
            key: None,
            trusted: None,
            timeout: None,
            stop_at: Vec::new(),
            echo: false,
            terminal: false,
            interrupt: None,
        }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What boots.
    #[must_use]
    pub fn boot(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }

    /// Another flat core image than `target/image/corevisor.bin`.
    #[must_use]
    pub fn core(mut self, file: impl Into<PathBuf>) -> Self {
        self.core = file.into();
        self
    }

    /// The host's kernel: a version of `target/host`, or a file.
    #[must_use]
    pub fn kernel(mut self, what: impl Into<String>) -> Self {
        self.kernel = what.into();
        self
    }

    /// Another initramfs; a script and extra files still go behind it.
    #[must_use]
    pub fn initrd(mut self, file: impl Into<PathBuf>) -> Self {
        self.initrd = Some(file.into());
        self
    }

    /// No initramfs at all.
    #[must_use]
    pub fn no_initrd(mut self) -> Self {
        self.no_initrd = true;
        self
    }

    /// A shell script to run in the host instead of a shell; then the host powers off. An empty one only shows the
    /// banner.
    #[must_use]
    pub fn script(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.extra.script = Some(text.into());
        self
    }

    /// One more file in the host, at its absolute path.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.extra.files.push((path.into(), content.into()));
        self
    }

    /// More for the end of the command line.
    #[must_use]
    pub fn append(mut self, args: impl Into<String>) -> Self {
        self.append.push(args.into());
        self
    }

    /// The whole command line, in place of the usual one.
    #[must_use]
    pub fn whole_append(mut self, args: impl Into<String>) -> Self {
        self.whole_append = Some(args.into());
        self
    }

    /// Another device tree.
    #[must_use]
    pub fn dtb(mut self, file: impl Into<PathBuf>) -> Self {
        self.dtb = Some(file.into());
        self
    }

    /// The key that signs protected VMs, and that the core is given; else the development key.
    #[must_use]
    pub fn key(mut self, file: impl Into<PathBuf>) -> Self {
        self.key = Some(file.into());
        self
    }

    /// The core is given this public key, whichever signs.
    #[must_use]
    pub fn trusted(mut self, public: [u8; 32]) -> Self {
        self.trusted = Some(public);
        self
    }

    /// After this time the machine is ended: [`Outcome::TimedOut`].
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// End the machine when the console shows this: [`Outcome::Stopped`]. Can be given more than once.
    #[must_use]
    pub fn stop_at(mut self, text: impl Into<String>) -> Self {
        self.stop_at.push(text.into());
        self
    }

    /// Show the console on standard output while it runs.
    #[must_use]
    pub fn echo(mut self, show: bool) -> Self {
        self.echo = show;
        self
    }

    /// Give the machine the terminal; its console is seen by [`Running`] only when it has ended.
    #[must_use]
    pub fn terminal(mut self, give: bool) -> Self {
        self.terminal = give;
        self
    }

    /// End the machine when this becomes a signal's number: [`Outcome::Interrupted`].
    #[must_use]
    pub fn interrupt(mut self, signal: Arc<AtomicUsize>) -> Self {
        self.interrupt = Some(signal);
        self
    }

    /// Where the files of a dry run are.
    fn dry_dir(&self) -> PathBuf {
        self.project.runs().join("dry-run")
    }

    /// QEMU's line for an interactive run, to paste into a shell, and what is not there yet for it.
    ///
    /// Makes the files that the line names as far as it can.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn dry_run(&self) -> Result<(String, Option<RunError>), RunError> {
        self.check_named_files()?;
        let dir = self.dry_dir();
        create_dir(&dir)?;
        let (files, missing) = match self.prepare(&dir) {
            Ok(files) => (files, None),
            Err(error) if is_missing(&error) => (self.files_to_be(&dir), Some(error)),
            Err(error) => return Err(error),
        };
        let args = self.machine.args(&files, self.has_core(), Console::Terminal)?;
        Ok((shell_line(&self.project.qemu(), &args), missing))
    }

    fn has_core(&self) -> bool {
        !matches!(self.boot, Boot::NoCore)
    }

    fn has_vms(&self) -> bool {
        matches!(self.boot, Boot::Mini(_))
    }

    /// Whether the core's device tree is made to have a public key in it.
    fn gives_key(&self) -> bool {
        self.has_vms() || self.has_core() && self.trusted.is_some()
    }

    /// Files that were named must be there; nobody makes them.
    fn check_named_files(&self) -> Result<(), FileError> {
        let boots_kernel = matches!(self.boot, Boot::Core | Boot::NoCore);
        let kernel = (boots_kernel && !is_version(&self.kernel)).then(|| PathBuf::from(&self.kernel));
        let image = match &self.boot {
            Boot::File(file) => Some(file.clone()),
            _ => None,
        };
        for file in [kernel, image, self.initrd.clone(), self.dtb.clone(), self.key.clone()].into_iter().flatten() {
            std::fs::File::open(&file).map_err(FileError::at("read", &file))?;
        }
        Ok(())
    }

    /// The paths that [`Self::prepare`] will give.
    fn files_to_be(&self, dir: &Path) -> BootFiles {
        BootFiles {
            kernel: match &self.boot {
                Boot::Core | Boot::Mini(_) => Some(dir.join(BUNDLE)),
                Boot::NoCore => Some(Kernel::image_path(&self.project, &self.kernel)),
                Boot::File(file) => Some(file.clone()),
                Boot::Nothing => None,
            },
            initrd: match &self.initrd {
                Some(file) if self.extra.is_empty() => Some(file.clone()),
                _ => (!self.no_initrd).then(|| dir.join(INITRD)),
            },
            append: self.command_line(),
            dtb: match (&self.dtb, self.machine.board()) {
                _ if self.gives_key() => Some(dir.join(DTB)),
                (dtb, Board::Virt) => dtb.clone(),
                (None, _) => Some(dir.join(DTB)),
                (dtb, _) => dtb.clone(),
            },
        }
    }

    fn command_line(&self) -> String {
        if let Some(whole) = &self.whole_append {
            return whole.clone();
        }
        let parts = std::iter::once(self.machine.base_append()).chain(self.append.iter().map(String::as_str));
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// Makes the files to boot, in `dir`.
    fn prepare(&self, dir: &Path) -> Result<BootFiles, RunError> {
        let files = self.files_to_be(dir);
        // What the board cannot do is said first, before any work.
        self.machine.args(&files, self.has_core(), Console::Pipes)?;
        if let Boot::Mini(vms) = &self.boot {
            self.prepare_mini(vms, &files, dir)?;
            return Ok(files);
        }
        let needs_kernel = matches!(self.boot, Boot::Core | Boot::NoCore);
        let needs_base = self.initrd.is_none() && !self.no_initrd;
        if needs_kernel || needs_base {
            let kernel = Kernel::resolve(&self.project, &self.kernel)?;
            if needs_kernel {
                self.prepare_kernel(&kernel, &files)?;
            }
            if needs_base {
                self.prepare_initrd(&initrd::base(&self.project, &kernel)?, &files)?;
            }
        }
        if let Some(own) = &self.initrd {
            self.prepare_initrd(own, &files)?;
        }
        if let (true, Some(public)) = (self.gives_key(), self.trusted) {
            self.prepare_tree(public, &files, dir)?;
        } else if let (None, Some(path)) = (&self.dtb, &files.dtb)
            && let Some(tree) = board_tree::of(&self.project, self.machine.board())?
        {
            write(path, &[&tree])?;
        }
        Ok(files)
    }

    fn prepare_kernel(&self, kernel: &Kernel, files: &BootFiles) -> Result<(), RunError> {
        if !self.has_core() {
            let (path, content) = (kernel.image.display().to_string(), read(&kernel.image)?);
            return crate::arm64_image::image_size(&content)
                .map(|_| ())
                .map_err(|error| RunError::Kernel { path, error });
        }
        self.prepare_bundle(&kernel.image, files)
    }

    fn prepare_bundle(&self, kernel: &Path, files: &BootFiles) -> Result<(), RunError> {
        let path = kernel.display().to_string();
        let file = bundle(&read(&self.core)?, &read(kernel)?).map_err(|error| {
            let path = match error {
                BundleError::Kernel(_) | BundleError::KernelMemory(_) => path,
                _ => self.core.display().to_string(),
            };
            RunError::Bundle { path, error }
        })?;
        if let Some(path) = &files.kernel {
            write(path, &[&file])?;
        }
        Ok(())
    }

    /// Bundle, archive of VMs, and a device tree with the public key.
    fn prepare_mini(&self, vms: &Vms, files: &BootFiles, dir: &Path) -> Result<(), RunError> {
        let key = match &self.key {
            Some(file) => Key::read(file)?,
            None => Key::read_or_make(&self.project.development_key())?.0,
        };
        self.prepare_bundle(&self.project.mini(), files)?;
        if let Some(path) = &files.initrd {
            write(path, &[&vms.archive(&self.project, self.machine.gic_version(), &key)?])?;
        }
        self.prepare_tree(self.trusted.unwrap_or_else(|| key.public()), files, dir)
    }

    /// The machine's device tree with a public key.
    fn prepare_tree(&self, public: [u8; 32], files: &BootFiles, dir: &Path) -> Result<(), RunError> {
        let tree = match (&self.dtb, board_tree::of(&self.project, self.machine.board())?) {
            (Some(file), _) => read(file)?,
            (None, Some(tree)) => tree,
            (None, None) => given_tree::of_qemu(&self.project.qemu(), &self.machine, dir)?,
        };
        if let Some(path) = &files.dtb {
            write(path, &[&given_tree::with_keys(&tree, &[public])?])?;
        }
        Ok(())
    }

    fn prepare_initrd(&self, base: &Path, files: &BootFiles) -> Result<(), RunError> {
        match &files.initrd {
            Some(path) if path != base => {
                let base = read(base)?;
                let extra = if self.extra.is_empty() { Vec::new() } else { self.extra.archive() };
                let padding = vec![0; base.len().next_multiple_of(4) - base.len()];
                write(path, &[&base, &padding, &extra])?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Starts the machine.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn start(&self) -> Result<Running, RunError> {
        self.check_named_files()?;
        create_dir(&self.project.runs())?;
        remove_dead_runs(&self.project.runs());
        let dir = tempfile::Builder::new()
            .prefix(&format!("run-{}-", std::process::id()))
            .tempdir_in(self.project.runs())
            .map_err(FileError::at("make a folder in", self.project.runs()))?;
        let files = self.prepare(dir.path())?;
        let console = if self.terminal { Console::Terminal } else { Console::Pipes };
        let machine = self.machine.clone().record(dir.path().join(CONSOLE));
        let args = machine.args(&files, self.has_core(), console)?;
        Running::start(self, dir, args)
    }

    /// Starts the machine and waits for its end.
    ///
    /// # Errors
    /// [`RunError`] if it cannot be started; how it ended is in [`Finished::outcome`].
    pub fn finish(&self) -> Result<Finished, RunError> {
        Ok(self.start()?.finish())
    }
}

/// Removes the folders of runs whose process was killed before it could.
fn remove_dead_runs(runs: &Path) {
    for dir in std::fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = dir.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("run-")?.split('-').next());
        if process.is_some_and(|id| id.bytes().all(|b| b.is_ascii_digit()) && !Path::new("/proc").join(id).exists()) {
            // Another run may be at it too.
            let _ = std::fs::remove_dir_all(dir.path());
        }
    }
}

const BUNDLE: &str = "bundle.img";
/// The console of a machine that has the terminal.
pub(crate) const CONSOLE: &str = "console.txt";
const INITRD: &str = "initrd.cpio";
const DTB: &str = "board.dtb";

#[cfg(test)]
mod tests;
