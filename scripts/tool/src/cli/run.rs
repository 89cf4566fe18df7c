//! `scripts/run`.

mod check;

use super::{
    CliError, HostArgs, LogLevel, say,
    value::{bytes, memory_size, seconds, vm_memory},
};
use crate::{
    error::{chain, is_missing, read},
    kvm::{self, Driver, GuestGic, KvmHost},
    kvm_protected::GuestShape,
    machine::{Board, Machine, shell_word},
    project::Project,
    run::{Boot, Finished, Outcome, Run},
    script::{FIRST_BYTE, Input, NEXT_BYTE, read_input},
    vms::{Payload, Vm, Vms},
};
use clap::{ArgAction, ArgGroup, Args};
use corevisor_interface::calls::MAX_VCPUS;
use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};
use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("vms").args(["mini", "demo", "guest"]))]
#[command(group = ArgGroup::new("own").args(["mini", "guest"]))]
#[command(group = ArgGroup::new("work").args(["vm", "check"]).multiple(true))]
pub(super) struct RunArgs {
    #[arg(long, value_enum, default_value = "virt")]
    board: Board,
    #[arg(long)]
    cpu: Option<String>,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    smp: Option<u32>,
    #[arg(long, value_parser = memory_size)]
    memory: Option<String>,
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=3))]
    gic: Option<u32>,
    #[arg(long)]
    drive: Vec<PathBuf>,
    #[arg(long)]
    net: bool,
    #[arg(long)]
    smmu: bool,
    #[arg(long)]
    dtb: Option<PathBuf>,
    #[command(flatten)]
    host: HostArgs,
    #[arg(long)]
    script: Option<PathBuf>,
    #[arg(long, requires = "work", conflicts_with_all = NOT_WITH_MINI)]
    mini: bool,
    #[arg(long, conflicts_with_all = NOT_WITH_MINI)]
    demo: bool,
    #[arg(long, conflicts_with_all = ["initrd", "raw_image"])]
    guest: bool,
    #[arg(long, requires = "guest", conflicts_with_all = ["mini", "demo"], default_value = "6.12")]
    guest_kernel: String,
    #[arg(long, requires = "guest", conflicts_with_all = ["mini", "demo"], value_parser = memory_size, default_value = "256M")]
    guest_memory: String,
    #[arg(long, requires = "guest", conflicts_with_all = ["mini", "demo"], value_enum, default_value = "off")]
    guest_gic: GuestGic,
    #[arg(long, requires = "guest", conflicts_with_all = ["mini", "demo"], allow_hyphen_values = true)]
    guest_append: Vec<String>,
    #[arg(long, requires = "mini", conflicts_with_all = ["guest", "demo"])]
    vm: Vec<String>,
    #[arg(long, requires = "mini", conflicts_with_all = ["guest", "demo"])]
    check: Vec<String>,
    #[arg(long, requires = "own", value_parser = clap::value_parser!(u8).range(1..=MAX_VCPUS as i64))]
    vcpus: Option<u8>,
    #[arg(long, requires = "mini", conflicts_with_all = ["guest", "demo"], value_parser = vm_memory)]
    vm_memory: Option<String>,
    #[arg(long, requires = "mini", conflicts_with_all = ["guest", "demo"])]
    vm_initrd: Option<PathBuf>,
    #[arg(long, requires = "mini", conflicts_with_all = ["guest", "demo"], allow_hyphen_values = true)]
    vm_append: Vec<String>,
    #[arg(long, requires = "own", conflicts_with = "no_core")]
    protected: bool,
    #[arg(long, requires = "vms")]
    key: Option<PathBuf>,
    #[arg(long, conflicts_with = "log")]
    no_core: bool,
    #[arg(long, conflicts_with = "no_core")]
    raw_image: Option<PathBuf>,
    #[arg(long, value_enum)]
    log: Option<LogLevel>,
    #[arg(long)]
    gdb: bool,
    #[arg(long)]
    icount: bool,
    #[arg(long, value_parser = seconds)]
    timeout: Option<Duration>,
    #[arg(long)]
    allow_reboot: bool,
    #[arg(long, allow_hyphen_values = true, action = ArgAction::Append)]
    qemu_arg: Vec<String>,
    #[arg(long)]
    dry_run: bool,
}

/// The mini host's options for a check and what it is given: "storm,seed=7".
fn lines_of_check(check: &str) -> impl Iterator<Item = String> {
    check.split(',').enumerate().map(|(n, word)| if n == 0 { format!("test={word}") } else { word.to_owned() })
}

/// The mini host is a host of its own, with nothing but VMs.
const NOT_WITH_MINI: [&str; 6] = ["kernel", "initrd", "no_core", "raw_image", "drive", "net"];

impl RunArgs {
    /// The VMs of `--mini` or `--demo`; `script` goes to those with Debian.
    fn vms(&self, script: Option<&[u8]>) -> Option<Vms> {
        if self.demo {
            return Some(Vms::demo());
        }
        let vms = self.payloads().into_iter().map(|payload| {
            let scripted = matches!(payload, Payload::Debian(_));
            let mut vm = Vm::new(payload).vcpus(self.vcpus.unwrap_or(1).into()).protected(self.protected);
            if let Some(bytes) = self.vm_memory.as_deref().and_then(bytes) {
                vm = vm.memory(bytes);
            }
            if let Some(file) = &self.vm_initrd {
                vm = vm.initrd(file);
            }
            if let Some(script) = script.filter(|_| scripted) {
                vm = vm.script(script);
            }
            self.vm_append.iter().fold(vm, |vm, args| vm.append(args))
        });
        let checks = self.check.iter().flat_map(|check| lines_of_check(check));
        // The check of snapshots has VMs of its own, if none are named.
        let own = self.vm.is_empty() && self.check.iter().any(|check| check == "snapshot");
        let first = if own { Vms::for_snapshot() } else { Vms::new() };
        self.mini.then(|| checks.fold(vms.fold(first, Vms::vm), Vms::line))
    }

    fn payloads(&self) -> Vec<Payload> {
        self.vm.iter().map(|name| Payload::named(name, &self.host.kernel)).collect()
    }

    /// Whether something in the machine takes a script.
    fn takes_script(&self) -> bool {
        let debian = || self.payloads().iter().any(|payload| matches!(payload, Payload::Debian(_)));
        !self.demo && (!self.mini || self.vm_initrd.is_none() && debian())
    }

    /// The host that runs VMs, and what its script does: one VM, at the keyboard or with `script`.
    fn kvm_host(&self, project: &Project, script: Option<&[u8]>) -> Result<(KvmHost, String), CliError> {
        let driver = if self.no_core { Driver::Own } else { Driver::Module(project.driver(&self.host.kernel)) };
        let mut host = KvmHost::new(project, &self.host.kernel, driver).guest_kernel(&self.guest_kernel);
        if let Some(script) = script {
            host = host.guest_script(script);
        }
        let start = match script {
            None => "vm_of_terminal",
            Some([]) => "vm < /dev/null",
            Some(_) => "vm_of_script",
        };
        let shape = GuestShape {
            vcpus: self.vcpus.unwrap_or(1),
            memory: self.guest_memory.clone(),
            gic: self.guest_gic,
            append: self.guest_append.join(" "),
        };
        let GuestShape { vcpus, memory, gic, append } = &shape;
        let settings = format!("VCPUS={vcpus} MEMORY={memory} GIC={} APPEND={}", gic.name(), shell_word(append));
        if self.protected {
            host = host.protected(shape, super::sign::key(project, self.key.as_deref())?);
        }
        Ok((host, format!("{}{settings}\nkvm_up\n{start}\n", kvm::USE.replace('\n', "; "))))
    }

    fn machine(&self) -> Machine {
        let mut machine = Machine::of(self.board);
        if let Some(model) = &self.cpu {
            machine = machine.cpu(model);
        }
        if let Some(cpus) = self.smp {
            machine = machine.smp(cpus);
        }
        if let Some(size) = &self.memory {
            machine = machine.memory(size);
        }
        if let Some(version) = self.gic {
            machine = machine.gic(version);
        }
        if self.guest && self.no_core {
            // The kernel's own KVM needs it.
            machine = machine.el2(true);
        }
        for file in &self.drive {
            machine = machine.drive(file);
        }
        for arg in &self.qemu_arg {
            machine = machine.arg(arg);
        }
        machine.net(self.net).smmu(self.smmu).gdb(self.gdb).icount(self.icount).allow_reboot(self.allow_reboot)
    }

    fn run(&self, project: &Project) -> Run {
        let mut run = Run::new(project, self.machine()).kernel(&self.host.kernel);
        if self.no_core {
            run = run.boot(Boot::NoCore);
        }
        if let Some(file) = &self.raw_image {
            run = run.boot(Boot::File(file.clone()));
        }
        if let Some(file) = &self.host.initrd {
            run = run.initrd(file);
        }
        if let Some(file) = &self.dtb {
            run = run.dtb(file);
        }
        if let Some(file) = &self.key {
            run = run.key(file);
        }
        if let Some(level) = self.log {
            run = run.append(level.argument());
        }
        for args in &self.host.append {
            run = run.append(args);
        }
        if let Some(limit) = self.timeout {
            run = run.timeout(limit);
        }
        run
    }
}

pub(super) fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    args.check()?;
    let project = Project::find()?;
    let mut run = args.run(&project);
    let mut script = args.script.as_deref().map(read).transpose()?;
    // An initramfs of somebody else's runs nobody's script unless one is given.
    let terminal = io::stdin().is_terminal() && args.script.is_none();
    if !args.dry_run && args.takes_script() && !io::stdin().is_terminal() && args.script.is_none() {
        match read_input(io::stdin().lock(), FIRST_BYTE, NEXT_BYTE)? {
            Input::Text(text) if text.is_empty() && args.host.initrd.is_some() => {}
            Input::Text(text) => script = Some(text),
            Input::Silent => {
                say("standard input is open but says nothing: going on without a script");
                script = Some(Vec::new());
            }
        }
    }
    if args.guest {
        let (host, start) = args.kvm_host(&project, script.as_deref())?;
        run = host.disks(run);
        match host.files(run.clone()) {
            Ok(whole) => run = whole,
            Err(missing) if args.dry_run && is_missing(&missing) => {
                say(&format!("not there yet: {}", chain(&missing)));
            }
            Err(wrong) => return Err(wrong.into()),
        }
        script = Some(start.into_bytes());
    }
    match (args.vms(script.as_deref()), script) {
        (Some(vms), _) => run = run.boot(Boot::Mini(vms)),
        (None, Some(script)) => run = run.script(script),
        (None, None) => {}
    }
    if args.dry_run {
        let (line, missing) = run.dry_run()?;
        println!("{line}");
        if let Some(missing) = missing {
            say(&format!("not there yet: {}", chain(&missing)));
        }
        return Ok(ExitCode::SUCCESS);
    }

    if args.gdb {
        say_how_to_attach(args, &project);
    }

    let signal = Arc::new(AtomicUsize::new(0));
    for number in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize).map_err(CliError::Signals)?;
    }
    let settings = terminal.then(|| tcgetattr(io::stdin()).ok()).flatten();
    let done = run.terminal(terminal).echo(!terminal).interrupt(signal).finish();
    if let Some(settings) = settings {
        // QEMU puts the terminal back itself, unless it was killed.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &settings);
    }
    Ok(report(&done?, terminal))
}

/// The core is linked at 0; a debugger has to be told where the boot loader puts it.
fn say_how_to_attach(args: &RunArgs, project: &Project) {
    say("QEMU waits for a debugger on port 1234. Attach with:");
    if args.no_core || args.raw_image.is_some() {
        say("  gdb-multiarch -ex 'target remote :1234'");
        return;
    }
    let elf = project.core_elf();
    let (elf, base) = (elf.display(), args.board.image_base());
    say(&format!("  gdb-multiarch -ex 'add-symbol-file {elf} -o {base:#x}' -ex 'target remote :1234'"));
    say(&format!(
        "  lldb -o 'target create {elf}' -o 'target modules load --file corevisor --slide {base:#x}' -o 'gdb-remote 1234'"
    ));
}

/// Says what happened unless all went well, and gives the exit status.
fn report(done: &Finished, shown: bool) -> ExitCode {
    if done.is_success() {
        return ExitCode::SUCCESS;
    }
    let status = match &done.outcome {
        Outcome::PoweredOff { script: Some(status) } => u8::try_from(*status).ok().filter(|n| *n != 0).unwrap_or(1),
        Outcome::TimedOut(_) => 124,
        Outcome::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(1),
        _ => 1,
    };
    if matches!(done.outcome, Outcome::TimedOut(_)) && !done.console.is_empty() && !shown {
        eprintln!("the console's last lines:\n{}", done.tail(15));
    }
    say(&done.story());
    ExitCode::from(status)
}
