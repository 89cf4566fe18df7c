//! The command line of the tool, which the scripts hand on: [`run`] for `scripts/run`, [`sign`] for `scripts/sign`.

mod check;
mod run;
mod sign;
mod usage;
mod value;

use crate::{
    bench::{Bench, BenchError},
    deploy::{Deploy, DeployError, Deployed, Target, deploy},
    error::{FileError, chain, read, write},
    project::{NoProject, Project},
    run::RunError,
    script::InputError,
    sign::{KeyError, SignError, Wrong},
};
use check::CheckError;
use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use kserv_model::image::PlaceError;
use run::RunArgs;
use sign::{HeaderArgs, SignArgs};
use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};
use thiserror::Error;
use value::memory_size;

/// What scripts/* are thin over.
#[derive(Debug, Parser)]
#[command(name = "corevisor-tool", version)]
pub struct Cli {
    /// Refuse what would be refused, and do nothing: for the scripts, before they install and build
    #[arg(long, hide = true)]
    check_only: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot core and host in QEMU
    #[command(override_help = include_str!("../../help/run.txt"))]
    Run(Box<RunArgs>),
    /// Make the files to boot on a board
    #[command(override_help = include_str!("../../help/image.txt"))]
    Image(ImageArgs),
    /// Print the project's numbers
    #[command(override_help = include_str!("../../help/bench.txt"))]
    Bench(BenchArgs),
    /// Sign the images of a protected VM
    #[command(override_help = include_str!("../../help/sign.txt"))]
    Sign(SignArgs),
    /// Write the interface as a C header
    Header(HeaderArgs),
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

/// What the host is made of.
#[derive(Debug, Args)]
struct HostArgs {
    #[arg(long, default_value = "6.12")]
    kernel: String,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long, allow_hyphen_values = true)]
    append: Vec<String>,
}

#[derive(Debug, Args)]
struct ImageArgs {
    #[arg(long, value_enum, default_value = "virt")]
    board: Target,
    #[command(flatten)]
    host: HostArgs,
    #[arg(long, value_enum)]
    log: Option<LogLevel>,
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[arg(long)]
    quick: bool,
    #[arg(long, conflicts_with_all = ["quick", "twice"])]
    vms: bool,
    #[arg(long, conflicts_with_all = ["vms", "twice", "top", "rounds"])]
    kvm: bool,
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
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Why a command did not do its work.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Project(#[from] NoProject),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Kvm(#[from] crate::kvm::KvmError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Initrd(#[from] crate::initrd::InitrdError),
    #[error(transparent)]
    Bundle(#[from] crate::bundle::BundleError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("{path}: {error}")]
    Place { path: String, error: PlaceError },
    #[error("{path} is not good: {error}")]
    Manifest { path: String, error: Wrong },
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
    let Cli { check_only, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !is_usage(&error) => error.exit(),
        Err(error) => {
            say(&usage::line(&error, command_name().as_deref()));
            return ExitCode::from(2);
        }
    };
    let done = match command {
        _ if check_only => check_only_what(&command).map(|()| ExitCode::SUCCESS),
        Command::Run(args) => run::run(&args),
        Command::Image(args) => image(args),
        Command::Bench(args) => bench(args),
        Command::Sign(args) => sign::sign(&args),
        Command::Header(args) => sign::header(&args),
        Command::Bundle { core, kernel, output } => bundle(&core, &kernel, &output),
        Command::Initrd { kernel, script, output } => initrd(&kernel, script, &output),
    };
    done.unwrap_or_else(|error| {
        say(&chain(&error));
        ExitCode::FAILURE
    })
}

/// Whether something is wrong with a command's options; help and the like is clap's.
fn is_usage(error: &clap::Error) -> bool {
    let asks_for_command =
        [ErrorKind::MissingSubcommand, ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand].contains(&error.kind());
    error.use_stderr() && !asks_for_command
}

/// For the scripts, before they install and build.
fn check_only_what(command: &Command) -> Result<(), CliError> {
    match command {
        Command::Run(args) => args.check(),
        Command::Image(args) => check::image(args),
        Command::Bench(args) => check::bench(args),
        _ => Ok(()),
    }
}

/// "run" of `corevisor-tool run`.
fn command_name() -> Option<String> {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    words.into_iter().find(|word| !word.starts_with('-'))
}

/// A line of ours, which nobody takes for one of the core's.
fn say(line: &str) {
    eprintln!("{}: {line}", command_name().as_deref().unwrap_or("corevisor-tool"));
}

fn image(args: ImageArgs) -> Result<ExitCode, CliError> {
    check::image(&args)?;
    let mut append = args.host.append;
    append.extend(args.log.map(LogLevel::argument));
    let HostArgs { kernel, initrd, .. } = args.host;
    let what = Deploy { board: args.board, kernel, initrd, append, output: args.output };
    let Deployed { dir, files, memory } = deploy(&Project::find()?, &what)?;
    println!("{}: {}", dir.display(), files.join(" "));
    // A boot loader that puts something else there destroys one or the other.
    println!("core and kernel need {} MiB of memory from a multiple of 2 MiB on", memory.div_ceil(1 << 20));
    Ok(ExitCode::SUCCESS)
}

fn bench(args: BenchArgs) -> Result<ExitCode, CliError> {
    check::bench(&args)?;
    let project = Project::find()?;
    let what = Bench {
        cpu: args.cpu,
        memory: args.memory,
        kernel: args.kernel,
        rounds: args.rounds.unwrap_or(if args.quick { 4 } else { 8 }),
        quick: args.quick,
        vms_only: args.vms,
        kvm_only: args.kvm,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const HELP: &[(&str, &str)] = &[
        ("sign", include_str!("../../help/sign.txt")),
        ("run", include_str!("../../help/run.txt")),
        ("image", include_str!("../../help/image.txt")),
        ("bench", include_str!("../../help/bench.txt")),
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
    fn a_file_that_is_named_and_not_there_is_refused_before_anything_is_made() {
        for option in ["--kernel", "--initrd", "--dtb", "--drive", "--script", "--raw-image"] {
            let error = parsed(&[option, "/nonexistent/file"]).unwrap().check().unwrap_err();
            assert_eq!(chain(&error), "cannot find /nonexistent/file: No such file or directory (os error 2)");
        }
        let error = parsed(&["--guest", "--guest-gic", "2", "--gic", "3"]).unwrap().check().unwrap_err();
        assert!(matches!(error, CliError::Kvm(_)), "{error}");
        parsed(&["--mini", "--vm", "debian", "--vm", "guest:hello"]).unwrap().check().unwrap();
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
            &["--mini"],
            &["--vm", "x"],
            &["--demo", "--mini", "--vm", "x"],
            &["--demo", "--kernel", "6.1"],
            &["--mini", "--vm", "x", "--vcpus", "17"],
            &["--key", "x"],
        ] {
            assert!(parsed(args).is_err(), "{args:?}");
        }
        assert!(parsed(&["--mini", "--vm", "x", "--vm", "y", "--vcpus", "4", "--protected", "--key", "k"]).is_ok());
        assert!(parsed(&["--demo", "--gic", "2"]).is_ok());
        assert!(parsed(&["--smmu", "--no-core", "--drive", "x", "--net"]).is_ok(), "then the host drives it");
        assert!(parsed(&["--memory", "512M", "--timeout", "1.5", "--append", "-x", "--qemu-arg", "-d"]).is_ok());
    }

    #[test]
    fn a_log_level_goes_to_the_command_line() {
        assert_eq!(LogLevel::Debug.argument(), "corevisor.log=debug");
    }
}
