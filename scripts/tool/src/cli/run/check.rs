//! What `scripts/run` refuses before it installs or builds anything.

use super::{
    super::check::{self, CheckError, MOST_CPUS},
    CliError, RunArgs,
};
use crate::{
    arm64_image::NotAnImage,
    board::{Board, GICV2_CPUS},
    bundle::BundleError,
    kvm::{GuestGic, KvmError},
    project::{Project, is_version},
    run::RunError,
    sign::Key,
    vms::{self, Payload, VmError},
};
use kserv_model::vm::GicVersion;
use std::path::Path;

/// The table of checks, where the mini host has it.
const CHECKS: &str = include_str!("../../../../../kserv/mini/src/checks/mod.rs");

impl RunArgs {
    /// What can be said before anything is made for the machine: no option comes to nothing, the machine is one that there is, and the
    /// files that are named are there and can be what they are named for.
    ///
    /// # Errors
    /// The first that is not so.
    pub(crate) fn check(&self) -> Result<(), CliError> {
        self.check_options()?;
        self.check_machine()?;
        self.check_files()?;
        self.check_vms()
    }

    fn check_options(&self) -> Result<(), CliError> {
        let useless = |why| Err(CheckError::Useless(why).into());
        if self.script.is_some() && self.demo {
            return useless("--demo has no shell to run --script in: leave --script out");
        }
        if self.script.is_some() && !self.takes_script() {
            return useless(
                "no VM here has a shell to run --script in: add --vm debian (without --vm-initrd), or leave --script out",
            );
        }
        if self.guest && self.key.is_some() && !self.protected {
            return useless("--key signs a protected guest: add --protected, or leave --key out");
        }
        if self.guest && !self.no_core && !is_version(&self.host.kernel) {
            return Err(CheckError::DriverFor.into());
        }
        check::append(&self.host.append)
    }

    fn check_machine(&self) -> Result<(), CliError> {
        let machine = self.machine();
        machine.check().map_err(RunError::from)?;
        let gic = machine.gic_version();
        if !self.no_core && self.raw_image.is_none() && self.smp.is_some_and(|cpus| cpus > MOST_CPUS) {
            return Err(CheckError::Cpus.into());
        }
        if self.guest && !self.guest_gic.works_on(gic) {
            return Err(KvmError::Gic { guest: self.guest_gic.name() }.into());
        }
        if self.vcpus.is_some_and(|vcpus| u32::from(vcpus) > GICV2_CPUS) {
            if self.mini && gic == GicVersion::V2 {
                return Err(CheckError::Vcpus("--gic 3").into());
            }
            if self.guest && self.guest_gic != GuestGic::V3 {
                return Err(CheckError::Vcpus("--guest-gic 3").into());
            }
        }
        self.check_board()
    }

    /// Two boards have Linux only.
    fn check_board(&self) -> Result<(), CliError> {
        let board = self.board;
        if !matches!(board, Board::Imx8mpEvk | Board::Zcu102) {
            return Ok(());
        }
        let (what, why) = match (self.demo, self.mini, self.guest && self.protected) {
            (true, ..) => ("--demo", "whose serial port the mini host does not drive"),
            (_, true, _) => ("--mini", "whose serial port the mini host does not drive"),
            (.., true) => ("--guest --protected", "whose device tree the public key cannot be put into"),
            _ => return Ok(()),
        };
        Err(CheckError::Board { what, board, why }.into())
    }

    fn check_files(&self) -> Result<(), CliError> {
        if !is_version(&self.host.kernel) {
            self.check_kernel(Path::new(&self.host.kernel))?;
        }
        if !is_version(&self.guest_kernel) {
            // QEMU unpacks kernels, but what it would put into memory is signed here.
            let wrong = check::image_form(Path::new(&self.guest_kernel))?.filter(|_| self.protected);
            wrong.map_or(Ok(()), |error| Err(not_as_it_is(Path::new(&self.guest_kernel), error)))?;
        }
        self.dtb.as_deref().map_or(Ok(()), check::tree)?;
        for file in [&self.host.initrd, &self.vm_initrd, &self.raw_image].into_iter().flatten() {
            check::file(file)?;
        }
        for file in self.drive.iter().chain(&self.script) {
            check::no_folder(file)?;
        }
        if let Some(key) = &self.key {
            check::file(key)?;
            Key::read(key)?;
        }
        Ok(())
    }

    fn check_kernel(&self, path: &Path) -> Result<(), CliError> {
        match check::image_form(path)? {
            // It only says which modules the initramfs has.
            _ if self.raw_image.is_some() => Ok(()),
            None => Ok(()),
            Some(error) if self.no_core => Err(not_as_it_is(path, error)),
            Some(error) => {
                let path = path.display().to_string();
                Err(RunError::Bundle { path, error: BundleError::Kernel(error) }.into())
            }
        }
    }

    fn check_vms(&self) -> Result<(), CliError> {
        for (number, payload) in self.payloads().into_iter().enumerate() {
            match payload {
                Payload::Debian(_) => {}
                Payload::Guest(name) => _ = vms::known_guest(&Project::find()?, &name).map_err(RunError::from)?,
                Payload::File(path) => {
                    // A flat binary has no form.
                    if let Some(error @ (NotAnImage::Gzip | NotAnImage::Zboot)) = check::image_form(&path)? {
                        return Err(not_as_it_is(&path, error));
                    }
                    if check::head(&path)?.is_some_and(|head| head.starts_with(b"\x7fELF")) {
                        let (vm, what) = (format!("vm{number}"), path.display().to_string());
                        return Err(RunError::from(VmError::Elf { vm, what }).into());
                    }
                }
            }
        }
        for check in &self.check {
            let name = check.split(',').next().unwrap_or_default();
            if !known_checks().any(|known| known == name) {
                let known = known_checks().collect::<Vec<_>>().join(", ");
                return Err(CheckError::UnknownCheck { name: name.to_owned(), known }.into());
            }
        }
        Ok(())
    }
}

fn not_as_it_is(path: &Path, error: NotAnImage) -> CliError {
    RunError::Kernel { path: path.display().to_string(), error }.into()
}

/// The names in the mini host's table, and the one for many of them.
fn known_checks() -> impl Iterator<Item = &'static str> {
    let table = CHECKS.split_once("const CHECKS").map_or("", |(_, table)| table);
    let lines = table.lines().take_while(|line| *line != "];");
    let names = lines.filter_map(|line| line.trim().strip_prefix("(\"")?.split_once('"'));
    std::iter::once("all").chain(names.map(|(name, _)| name))
}
