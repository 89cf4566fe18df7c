//! A machine of QEMU, and its command line.

pub use crate::board::{Board, MachineError};
use crate::board::{CPUS, Fixed, GICV2_CPUS};
use kserv_model::vm::GicVersion;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// A machine: start with [`Machine::virt`] or [`Machine::of`] and say what differs.
#[derive(Clone, Debug)]
pub struct Machine {
    board: Board,
    cpu: Option<String>,
    smp: Option<u32>,
    memory: Option<String>,
    gic: Option<u32>,
    el2: Option<bool>,
    machine_options: Vec<String>,
    gdb: bool,
    icount: bool,
    drives: Vec<PathBuf>,
    net: bool,
    smmu: bool,
    allow_reboot: bool,
    record: Option<PathBuf>,
    args: Vec<OsString>,
}

/// What the machine's loader puts into memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootFiles {
    /// `-kernel`.
    pub kernel: Option<PathBuf>,
    /// `-initrd`.
    pub initrd: Option<PathBuf>,
    /// `-append`.
    pub append: String,
    /// `-dtb`.
    pub dtb: Option<PathBuf>,
}

/// Where the machine's serial console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// To the terminal, shared with QEMU's monitor (Ctrl-A c).
    Terminal,
    /// From standard input and to standard output, nothing else in it.
    Pipes,
}

impl Machine {
    fn new(board: Board) -> Self {
        Self {
            board,
            cpu: None,
            smp: None,
            memory: None,
            gic: None,
            el2: None,
            machine_options: Vec::new(),
            gdb: false,
            icount: false,
            drives: Vec::new(),
            net: false,
            smmu: false,
            allow_reboot: false,
            record: None,
            args: Vec::new(),
        }
    }

    /// QEMU's virt: four `max` CPUs, 2 GiB, GICv3.
    pub fn virt() -> Self {
        Self::new(Board::Virt)
    }

    /// The Raspberry Pi 4: four cortex-a72, 2 GiB, GIC-400.
    pub fn raspi4b() -> Self {
        Self::new(Board::Raspi4b)
    }

    /// A board as QEMU has it. The real ones: four CPUs, 2 GiB.
    pub fn of(board: Board) -> Self {
        Self::new(board)
    }

    /// The board.
    pub fn board(&self) -> Board {
        self.board
    }

    /// The CPU model: `max`, `cortex-a72`, ...
    #[must_use]
    pub fn cpu(mut self, model: impl Into<String>) -> Self {
        self.cpu = Some(model.into());
        self
    }

    /// The number of CPUs.
    #[must_use]
    pub fn smp(mut self, cpus: u32) -> Self {
        self.smp = Some(cpus);
        self
    }

    /// The memory, as QEMU writes it: `512M`, `4G`.
    #[must_use]
    pub fn memory(mut self, size: impl Into<String>) -> Self {
        self.memory = Some(size.into());
        self
    }

    /// The version of the interrupt controller: 2, 3 or 4.
    #[must_use]
    pub fn gic(mut self, version: u32) -> Self {
        self.gic = Some(version);
        self
    }

    /// Whether virt has EL2, whatever is booted (else: with the core it has, without it does not).
    #[must_use]
    pub fn el2(mut self, there: bool) -> Self {
        self.el2 = Some(there);
        self
    }

    /// One more option of `-M`: `secure=on`.
    #[must_use]
    pub fn machine_option(mut self, option: impl Into<String>) -> Self {
        self.machine_options.push(option.into());
        self
    }

    /// Wait for a debugger on port 1234.
    #[must_use]
    pub fn gdb(mut self, wait: bool) -> Self {
        self.gdb = wait;
        self
    }

    /// Count instructions: one is 1 ns, and every run is the same.
    #[must_use]
    pub fn icount(mut self, count: bool) -> Self {
        self.icount = count;
        self
    }

    /// One more virtio disk, a raw file.
    #[must_use]
    pub fn drive(mut self, file: impl Into<PathBuf>) -> Self {
        self.drives.push(file.into());
        self
    }

    /// A virtio network card on QEMU's user network.
    #[must_use]
    pub fn net(mut self, card: bool) -> Self {
        self.net = card;
        self
    }

    /// Whether it has that card.
    pub fn has_net(&self) -> bool {
        self.net
    }

    /// PCI devices behind an SMMUv3; disks and network are such devices then.
    #[must_use]
    pub fn smmu(mut self, there: bool) -> Self {
        self.smmu = there;
        self
    }

    /// Let the machine reset; else a reset ends the run.
    #[must_use]
    pub fn allow_reboot(mut self, allow: bool) -> Self {
        self.allow_reboot = allow;
        self
    }

    /// Where a console on the terminal is recorded.
    #[must_use]
    pub fn record(mut self, file: impl Into<PathBuf>) -> Self {
        self.record = Some(file.into());
        self
    }

    /// Whether the machine may reset and go on.
    pub fn may_reboot(&self) -> bool {
        self.allow_reboot
    }

    /// One more argument for QEMU, as it is.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The interrupt controller that it has.
    pub fn gic_version(&self) -> GicVersion {
        match self.board.fixed().map(|fixed| fixed.gic).or(self.gic) {
            Some(2) => GicVersion::V2,
            _ => GicVersion::V3,
        }
    }

    /// Whether the machine waits for a debugger.
    pub fn waits_for_debugger(&self) -> bool {
        self.gdb
    }

    /// The start of the kernel's command line: its console, and a reset at once when it panics.
    pub fn base_append(&self) -> &'static str {
        match self.board {
            Board::Virt => "console=ttyAMA0 panic=-1 quiet",
            Board::Raspi4b => crate::raspi::QEMU_APPEND,
            // Quieter than `quiet`: drivers complain of what the model lacks.
            Board::Imx8mpEvk => "console=ttymxc1,115200 panic=-1 loglevel=3",
            Board::Zcu102 => "console=ttyPS0,115200 panic=-1 loglevel=3",
        }
    }

    /// QEMU's arguments. `core`: whether the core is what boots.
    ///
    /// # Errors
    /// [`MachineError`] if the board does not have what was asked for.
    pub fn args(&self, boot: &BootFiles, core: bool, console: Console) -> Result<Vec<OsString>, MachineError> {
        self.check()?;
        let mut args = Args::default();
        let fixed = self.board.fixed();
        match &fixed {
            None => self.virt_args(&mut args, core),
            Some(fixed) => self.board_args(fixed, &mut args),
        }
        args.flag("-nographic").pair("-nic", "none");
        for _ in 0..fixed.map_or(0, |fixed| fixed.ports_before) {
            args.pair("-serial", "null");
        }
        match console {
            // Said, not left to -nographic, which forgets it when a run adds its own control socket; then
            // Ctrl-C would end QEMU.
            Console::Terminal => match &self.record {
                None => args.pair("-serial", "mon:stdio"),
                // The same, spelled out.
                Some(file) => args
                    .pair("-chardev", option_with_path("stdio,mux=on,id=console,signal=off,logfile=", file))
                    .pair("-serial", "chardev:console")
                    .pair("-mon", "chardev=console,mode=readline"),
            },
            Console::Pipes => args.pair("-monitor", "none").pair("-serial", "stdio"),
        };
        if self.icount {
            args.pair("-icount", "shift=0,sleep=off").pair("-rtc", "clock=vm").pair("-seed", "1");
        }
        for (number, file) in self.drives.iter().enumerate() {
            args.pair("-drive", option_with_path(&format!("if=none,id=drive{number},format=raw,file="), file));
            args.pair("-device", self.virtio("blk", &format!("drive=drive{number}")));
        }
        if self.net {
            // A PCI card comes with a boot ROM, which nobody here starts and which QEMU may not have.
            let rom = if self.smmu { ",romfile=" } else { "" };
            args.pair("-netdev", "user,id=net0").pair("-device", self.virtio("net", &format!("netdev=net0{rom}")));
        }
        if !self.allow_reboot {
            args.flag("-no-reboot");
        }
        if self.gdb {
            args.flag("-s").flag("-S");
        }
        for (name, file) in [("-kernel", &boot.kernel), ("-initrd", &boot.initrd), ("-dtb", &boot.dtb)] {
            if let Some(file) = file {
                args.pair(name, file);
            }
        }
        // QEMU refuses a command line without a kernel to give it to.
        if boot.kernel.is_some() && !boot.append.is_empty() {
            args.pair("-append", &boot.append);
        }
        args.0.extend(self.args.iter().cloned());
        Ok(args.0)
    }

    /// A virtio device, for `-device`. As a PCI device it goes by the SMMU's rules only if it is told to, as a modern one.
    pub(crate) fn virtio(&self, kind: &str, options: &str) -> String {
        match self.smmu {
            true => format!("virtio-{kind}-pci,{options},iommu_platform=on,disable-legacy=on"),
            false => format!("virtio-{kind}-device,{options}"),
        }
    }

    fn virt_args(&self, args: &mut Args, core: bool) {
        let el2 = if self.el2.unwrap_or(core) { "on" } else { "off" };
        let mut machine = format!("virt,virtualization={el2},gic-version={}", self.gic.unwrap_or(3));
        if self.smmu {
            machine.push_str(",iommu=smmuv3");
        }
        for option in &self.machine_options {
            machine.push(',');
            machine.push_str(option);
        }
        args.pair("-M", machine)
            .pair("-cpu", self.cpu.as_deref().unwrap_or("max"))
            .pair("-smp", self.smp.unwrap_or(4).to_string())
            .pair("-m", self.memory.as_deref().unwrap_or("2G"));
    }

    fn board_args(&self, fixed: &Fixed, args: &mut Args) {
        let machine = std::iter::once(fixed.machine).chain(self.machine_options.iter().map(String::as_str));
        args.pair("-M", machine.collect::<Vec<_>>().join(",")).pair("-smp", CPUS.to_string()).pair("-m", "2G");
    }

    /// Whether there is such a machine.
    ///
    /// # Errors
    /// [`MachineError`] if the board does not have what was asked for.
    pub fn check(&self) -> Result<(), MachineError> {
        let board = self.board;
        let check = |wrong: bool, option, fixed: &str| match wrong {
            true => Err(MachineError::Fixed { board, option, fixed: fixed.to_owned() }),
            false => Ok(()),
        };
        let Some(Fixed { cpu, gic, .. }) = board.fixed() else {
            let few = self.gic == Some(2) && self.smp.is_some_and(|cpus| cpus > GICV2_CPUS);
            return if few { Err(MachineError::Gicv2) } else { Ok(()) };
        };
        check(self.cpu.as_deref().is_some_and(|model| model != cpu), "--cpu", &format!("{cpu} CPUs"))?;
        check(self.smp.is_some_and(|cpus| cpus != CPUS), "--smp", "four CPUs")?;
        let sizes = ["2G", "2048M", "2048"];
        check(self.memory.as_deref().is_some_and(|size| !sizes.contains(&size)), "--memory", "2 GiB of memory")?;
        check(self.gic.is_some_and(|version| version != gic), "--gic", &format!("a GICv{gic}"))?;
        check(self.net || !self.drives.is_empty(), "--net and --drive", "no virtio devices")?;
        check(self.smmu, "--smmu", "neither an SMMU nor PCI devices")
    }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }
}

/// QEMU's options are comma lists; a comma in a file's name is written twice.
pub(crate) fn option_with_path(before: &str, path: &Path) -> OsString {
    match path.to_str() {
        Some(text) => format!("{before}{}", text.replace(',', ",,")).into(),
        None => {
            let mut option = OsString::from(before);
            option.push(path);
            option
        }
    }
}

/// A command line to paste into a shell.
pub fn shell_line(program: &Path, args: &[OsString]) -> String {
    let words = std::iter::once(program.as_os_str()).chain(args.iter().map(OsString::as_os_str));
    words.map(|word| shell_word(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// A word as a shell has it.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./=,:+@%".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine, core: bool) -> String {
        let boot = BootFiles { kernel: Some("/k".into()), append: "a b".into(), ..BootFiles::default() };
        shell_line(Path::new("qemu"), &machine.args(&boot, core, Console::Terminal).unwrap())
    }

    #[test]
    fn the_default_machine() {
        assert_eq!(
            line(&Machine::virt(), true),
            "qemu -M virt,virtualization=on,gic-version=3 -cpu max -smp 4 -m 2G -nographic -nic none -serial mon:stdio \
             -no-reboot -kernel /k -append 'a b'"
        );
    }

    #[test]
    fn without_the_core_there_is_no_el2_unless_asked_for() {
        assert!(line(&Machine::virt(), false).contains("virtualization=off"));
        assert!(line(&Machine::virt().el2(true), false).contains("virtualization=on"));
        assert!(line(&Machine::virt().el2(false), true).contains("virtualization=off"));
    }

    #[test]
    fn counted_runs_have_no_chance_in_them() {
        let line = line(&Machine::virt().icount(true), true);
        for part in ["-icount shift=0,sleep=off", "-rtc clock=vm", "-seed 1"] {
            assert!(line.contains(part), "{part}");
        }
    }

    #[test]
    fn disks_and_network_are_virtio() {
        let line = line(&Machine::virt().drive("/a,b").drive("/c").net(true), true);
        assert!(line.contains("-drive if=none,id=drive0,format=raw,file=/a,,b -device virtio-blk-device,drive=drive0"));
        assert!(line.contains("id=drive1,format=raw,file=/c"));
        assert!(line.contains("-netdev user,id=net0 -device virtio-net-device,netdev=net0"));
    }

    #[test]
    fn behind_an_smmu_disks_and_network_are_pci_devices_that_go_by_its_rules() {
        let machine = Machine::virt().drive("/a").net(true).smmu(true);
        for core in [true, false] {
            let line = line(&machine, core);
            let el2 = if core { "on" } else { "off" };
            assert!(line.contains(&format!("-M virt,virtualization={el2},gic-version=3,iommu=smmuv3 ")), "{line}");
            assert!(line.contains("-device virtio-blk-pci,drive=drive0,iommu_platform=on,disable-legacy=on"), "{line}");
            let card = "-device virtio-net-pci,netdev=net0,romfile=,iommu_platform=on,disable-legacy=on";
            assert!(line.contains(card) && !line.contains("-device,"), "{line}");
        }
    }

    #[test]
    fn what_the_raspberry_pi_does_not_have_is_refused() {
        let refused = |machine: Machine| machine.args(&BootFiles::default(), true, Console::Pipes).is_err();
        assert!(!refused(Machine::raspi4b()));
        assert!(!refused(Machine::raspi4b().cpu("cortex-a72").smp(4).memory("2G").gic(2)));
        assert!(refused(Machine::raspi4b().cpu("max")));
        assert!(refused(Machine::raspi4b().smp(2)));
        assert!(refused(Machine::raspi4b().memory("4G")));
        assert!(refused(Machine::raspi4b().gic(3)));
        assert!(refused(Machine::raspi4b().net(true)));
        let smmu = Machine::raspi4b().smmu(true).args(&BootFiles::default(), true, Console::Pipes).unwrap_err();
        let line = "the raspi4b of QEMU has neither an SMMU nor PCI devices: leave --smmu out, or use --board virt";
        assert_eq!(smmu.to_string(), line);
        assert!(refused(Machine::raspi4b().drive("/a")));
    }

    #[test]
    fn a_gicv2_has_eight_cpus_at_most() {
        assert_eq!(Machine::virt().gic(2).smp(8).check(), Ok(()));
        assert_eq!(Machine::virt().smp(9).check(), Ok(()));
        let refused = Machine::virt().gic(2).smp(9).check().unwrap_err();
        assert_eq!(refused.to_string(), "a GICv2 serves at most 8 CPUs: give --smp 8 or less, or --gic 3");
    }

    #[test]
    fn the_console_of_the_imx8mp_is_its_second_serial_port() {
        let line = line(&Machine::of(Board::Imx8mpEvk), true);
        assert!(
            line.contains("-M imx8mp-evk -smp 4 -m 2G") && line.contains("-serial null -serial mon:stdio"),
            "{line}"
        );
        let refused =
            Machine::of(Board::Imx8mpEvk).gic(2).args(&BootFiles::default(), true, Console::Pipes).unwrap_err();
        let expected = "the imx8mp-evk of QEMU has a GICv3: leave --gic out, or use --board virt";
        assert_eq!(refused.to_string(), expected);
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell_word("a=b,c"), "a=b,c");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word("$x"), "'$x'");
    }
}
