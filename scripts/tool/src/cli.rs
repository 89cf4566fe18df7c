//! The command line of the tool, which `scripts/run` and `scripts/image` hand on.

use crate::{
    bench::{Bench, BenchError},
    deploy::{Deploy, DeployError, deploy},
    error::{FileError, chain, read, write},
    machine::{Board, Machine},
    project::{NoProject, Project},
    run::{Boot, Finished, Outcome, Run, RunError},
    script::{FIRST_BYTE, Input, InputError, NEXT_BYTE, read_input},
};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};
use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use thiserror::Error;

/// What scripts/* are thin over.
#[derive(Debug, Parser)]
#[command(name = "corevisor-tool", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot core and host in QEMU
    #[command(override_help = include_str!("../help/run.txt"))]
    Run(Box<RunArgs>),
    /// Make the files to boot on a board
    #[command(override_help = include_str!("../help/image.txt"))]
    Image(ImageArgs),
    /// Print the project's numbers
    #[command(override_help = include_str!("../help/bench.txt"))]
    Bench(BenchArgs),
    /// Put the core's flat image and a host kernel into one file
    Bundle {
        /// The core's flat image
        #[arg(long)]
        core: PathBuf,
        /// The host's kernel, an arm64 Image
        #[arg(long)]
        kernel: PathBuf,
        /// Where to
        #[arg(long)]
        output: PathBuf,
    },
    /// Make the host's initramfs
    Initrd {
        /// The kernel it is for: a version, or a file
        #[arg(long, default_value = "6.12")]
        kernel: String,
        /// A script to run instead of a shell
        #[arg(long)]
        script: Option<PathBuf>,
        /// Where to
        #[arg(long)]
        output: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    fn argument(self) -> String {
        format!("corevisor.log={}", format!("{self:?}").to_lowercase())
    }
}

#[derive(Debug, Args)]
struct RunArgs {
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
    dtb: Option<PathBuf>,
    #[arg(long, default_value = "6.12")]
    kernel: String,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long, allow_hyphen_values = true)]
    append: Vec<String>,
    #[arg(long)]
    script: Option<PathBuf>,
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

#[derive(Debug, Args)]
struct ImageArgs {
    #[arg(long, value_enum, default_value = "virt")]
    board: Board,
    #[arg(long, default_value = "6.12")]
    kernel: String,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long, allow_hyphen_values = true)]
    append: Vec<String>,
    #[arg(long, value_enum)]
    log: Option<LogLevel>,
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    check: bool,
    #[arg(long)]
    twice: bool,
    #[arg(long, default_value = "0")]
    top: usize,
    #[arg(long, requires = "top")]
    lines: bool,
    #[arg(long, default_value = "max")]
    cpu: String,
    #[arg(long, value_parser = memory_size, default_value = "2G")]
    memory: String,
    #[arg(long, default_value = "6.12")]
    kernel: String,
    #[arg(long)]
    rounds: Option<u32>,
    #[arg(long)]
    json: Option<PathBuf>,
}

fn memory_size(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']);
    let unit = text.len() - digits.len();
    if digits.bytes().all(|b| b.is_ascii_digit()) && !digits.is_empty() && unit <= 1 {
        return Ok(text.to_owned());
    }
    Err("a number with M or G, such as 512M or 4G".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wanted = "a number of seconds above 0";
    let number: f64 = text.parse().map_err(|_| wanted)?;
    Duration::try_from_secs_f64(number).ok().filter(|limit| !limit.is_zero()).ok_or_else(|| wanted.to_owned())
}

/// Why a command did not do its work.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Project(#[from] NoProject),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Initrd(#[from] crate::initrd::InitrdError),
    #[error(transparent)]
    Bundle(#[from] crate::bundle::BundleError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("on virt the boot loader gives the command line: --append and --log are for raspi4b")]
    NoCommandLine,
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}

/// Does what the command line says. Messages go to standard error, one line each.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Image(args) => image(args),
        Command::Bench(args) => bench(args),
        Command::Bundle { core, kernel, output } => bundle(&core, &kernel, &output),
        Command::Initrd { kernel, script, output } => initrd(&kernel, script, &output),
    };
    done.unwrap_or_else(|error| {
        say(&chain(&error));
        ExitCode::FAILURE
    })
}

/// A line of ours, which nobody takes for one of the core's.
fn say(line: &str) {
    eprintln!("{}: {line}", std::env::args().nth(1).as_deref().unwrap_or("corevisor-tool"));
}

fn image(args: ImageArgs) -> Result<ExitCode, CliError> {
    let mut append = args.append;
    append.extend(args.log.map(LogLevel::argument));
    if args.board == Board::Virt && !append.is_empty() {
        return Err(CliError::NoCommandLine);
    }
    let what = Deploy { board: args.board, kernel: args.kernel, initrd: args.initrd, append, output: args.output };
    let (dir, files) = deploy(&Project::find()?, &what)?;
    println!("{}: {}", dir.display(), files.join(" "));
    Ok(ExitCode::SUCCESS)
}

fn bench(args: BenchArgs) -> Result<ExitCode, CliError> {
    let project = Project::find()?;
    let what = Bench {
        cpu: args.cpu,
        memory: args.memory,
        kernel: args.kernel,
        rounds: args.rounds.unwrap_or(if args.quick { 4 } else { 8 }),
        quick: args.quick,
        twice: args.twice,
        top: args.top,
        lines: args.lines,
    };
    let table = what.measure(&project, say)?;
    print!("{table}");
    let json = args.json.unwrap_or_else(|| project.root().join("target/bench.json"));
    write(&json, &[format!("{:#}\n", table.json()).as_bytes()])?;
    let missed = table.missed();
    if args.check && !missed.is_empty() {
        say(&format!("missed: {}", missed.join("; ")));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn bundle(core: &Path, kernel: &Path, output: &Path) -> Result<ExitCode, CliError> {
    write(output, &[&crate::bundle::bundle(&read(core)?, &read(kernel)?)?])?;
    Ok(ExitCode::SUCCESS)
}

fn initrd(kernel: &str, script: Option<PathBuf>, output: &Path) -> Result<ExitCode, CliError> {
    let project = Project::find()?;
    let base = crate::initrd::base(&project, &crate::project::Kernel::resolve(&project, kernel)?)?;
    let mut extra = crate::initrd::Extra::default();
    if let Some(script) = script {
        extra.script = Some(read(&script)?);
    }
    let behind = if extra.is_empty() { Vec::new() } else { extra.archive() };
    write(output, &[&read(&base)?, &behind])?;
    Ok(ExitCode::SUCCESS)
}

impl RunArgs {
    fn machine(&self) -> Machine {
        let mut machine = match self.board {
            Board::Virt => Machine::virt(),
            Board::Raspi4b => Machine::raspi4b(),
        };
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
        for file in &self.drive {
            machine = machine.drive(file);
        }
        for arg in &self.qemu_arg {
            machine = machine.arg(arg);
        }
        machine.net(self.net).gdb(self.gdb).icount(self.icount).allow_reboot(self.allow_reboot)
    }

    fn run(&self, project: &Project) -> Run {
        let mut run = Run::new(project, self.machine()).kernel(&self.kernel);
        if self.no_core {
            run = run.boot(Boot::NoCore);
        }
        if let Some(file) = &self.raw_image {
            run = run.boot(Boot::File(file.clone()));
        }
        if let Some(file) = &self.initrd {
            run = run.initrd(file);
        }
        if let Some(file) = &self.dtb {
            run = run.dtb(file);
        }
        if let Some(level) = self.log {
            run = run.append(level.argument());
        }
        for args in &self.append {
            run = run.append(args);
        }
        if let Some(limit) = self.timeout {
            run = run.timeout(limit);
        }
        run
    }
}

fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    let project = Project::find()?;
    let mut run = args.run(&project);
    if let Some(script) = &args.script {
        run = run.script(read(script)?);
    }
    if args.dry_run {
        let (line, missing) = run.dry_run()?;
        println!("{line}");
        if let Some(missing) = missing {
            say(&format!("not there yet: {} (scripts/run makes what is missing)", chain(&missing)));
        }
        return Ok(ExitCode::SUCCESS);
    }

    // An initramfs of somebody else's runs nobody's script unless one is given.
    let terminal = io::stdin().is_terminal() && args.script.is_none();
    if !io::stdin().is_terminal() && args.script.is_none() {
        match read_input(io::stdin().lock(), FIRST_BYTE, NEXT_BYTE)? {
            Input::Text(text) if text.is_empty() && args.initrd.is_some() => {}
            Input::Text(text) => run = run.script(text),
            Input::Silent => {
                say("standard input is open but says nothing: going on without a script");
                run = run.script("");
            }
        }
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
    Ok(report(&done?))
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
fn report(done: &Finished) -> ExitCode {
    if done.is_success() {
        return ExitCode::SUCCESS;
    }
    let status = match &done.outcome {
        Outcome::PoweredOff { script: Some(status) } => u8::try_from(*status).ok().filter(|n| *n != 0).unwrap_or(1),
        Outcome::TimedOut(_) => 124,
        Outcome::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(1),
        _ => 1,
    };
    if matches!(done.outcome, Outcome::TimedOut(_)) && !done.console.is_empty() {
        eprintln!("the console's last lines:\n{}", done.tail(15));
    }
    say(&done.story());
    ExitCode::from(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const HELP: &[(&str, &str)] = &[
        ("run", include_str!("../help/run.txt")),
        ("image", include_str!("../help/image.txt")),
        ("bench", include_str!("../help/bench.txt")),
    ];

    fn parsed(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let all = ["corevisor-tool", "run"].iter().chain(args);
        match Cli::try_parse_from(all)?.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_text_names_every_option_and_no_other() {
        for (name, text) in HELP.iter().copied() {
            let command = Cli::command();
            let command = command.find_subcommand(name).unwrap();
            let mut options: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
            options.push("help");
            options.sort_unstable();
            let mut named: Vec<_> = text
                .lines()
                .filter_map(|line| line.strip_prefix("  --"))
                .map(|line| line.split(' ').next().unwrap())
                .collect();
            named.sort_unstable();
            options.dedup();
            assert_eq!(named, options, "{name}");
        }
    }

    #[test]
    fn nonsense_is_refused_where_it_stands() {
        for args in [
            &["--memory", "lots"][..],
            &["--memory", "2GG"],
            &["--gic", "4"],
            &["--smp", "0"],
            &["--timeout", "0"],
            &["--timeout", "soon"],
            &["--log", "loud"],
            &["--no-core", "--log", "info"],
            &["--board", "toaster"],
        ] {
            assert!(parsed(args).is_err(), "{args:?}");
        }
        assert!(parsed(&["--memory", "512M", "--timeout", "1.5", "--append", "-x", "--qemu-arg", "-d"]).is_ok());
    }

    #[test]
    fn a_log_level_goes_to_the_command_line() {
        assert_eq!(LogLevel::Debug.argument(), "corevisor.log=debug");
    }
}
