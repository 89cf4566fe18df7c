//! Runs the cases, as many at a time as there are CPUs, and one more that mostly waits, and says how each ended.

use crate::bed::{Bed, Failure};
use corevisor_tool::run::{cpu_of_children, cpu_of_machines};
use std::{
    collections::VecDeque,
    io::Write,
    iter,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

/// A test case: a sentence that is true, and how to find out.
pub struct Case {
    topic: &'static str,
    name: String,
    only_in_full: bool,
    early: bool,
    waits: bool,
    act: Act,
}

type Act = Box<dyn Fn(&Bed) -> Result<(), Failure> + Send + Sync>;

impl Case {
    /// A case of the default run.
    pub fn new(
        topic: &'static str,
        name: impl Into<String>,
        act: impl Fn(&Bed) -> Result<(), Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { topic, name: name.into(), only_in_full: false, early: false, waits: false, act: Box::new(act) }
    }

    /// Left out of the default run if `condition`.
    pub fn only_in_full_if(mut self, condition: bool) -> Self {
        self.only_in_full = condition;
        self
    }

    /// One of those that take long: nothing else should have to wait for its end alone.
    pub fn starts_early(mut self) -> Self {
        self.early = true;
        self
    }

    /// One that leaves its CPU to others for most of its time: it runs beside them.
    pub fn mostly_waits(mut self) -> Self {
        self.waits = true;
        self
    }

    fn title(&self) -> String {
        format!("{}: {}", self.topic, self.name)
    }

    fn run(&self, bed: &Bed) -> Result<(), Failure> {
        catch_unwind(AssertUnwindSafe(|| (self.act)(bed))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(Failure::new(text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("the test case panicked")))
        })
    }
}

const HELP: &str = "usage: scripts/test qemu [--full] [--list] [--jobs N] [NAME...]

Runs the QEMU test cases whose title contains one of the NAMEs, or all of the default selection.
  --full     every case, also those that the default selection leaves out; named cases run in any case
  --list     only show the titles
  --jobs N   so many at a time (default: 2), and if more than 1, one more that mostly waits; a case's CPU time is its own only with 1
";

struct Options {
    full: bool,
    list: bool,
    jobs: usize,
    names: Vec<String>,
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { full: false, list: false, jobs: 2, names: Vec::new() };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--full" => options.full = true,
            "--list" => options.list = true,
            "--jobs" => {
                let number = args.next().and_then(|text| text.parse().ok()).filter(|jobs| *jobs > 0);
                options.jobs = number.ok_or("--jobs wants a number from 1 on")?;
            }
            "--help" | "-h" => return Err(HELP.to_owned()),
            name if name.starts_with('-') => return Err(format!("there is no option {name}\n\n{HELP}")),
            name => options.names.push(name.to_owned()),
        }
    }
    Ok(options)
}

/// Runs what the command line asks for.
pub fn run(cases: Vec<Case>, bed: &Bed) -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            print!("{text}");
            return if text == HELP { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let mut chosen: Vec<_> = cases.into_iter().filter(|case| options.chooses(case)).collect();
    chosen.sort_by_key(|case| !case.early);
    if options.list {
        chosen.iter().for_each(|case| println!("{}", case.title()));
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        println!("no test case is called so: {} (scripts/test qemu --full --list shows all)", options.names.join(", "));
        return ExitCode::from(2);
    }
    let failed = run_all(&chosen, bed, options.jobs);
    if !failed.is_empty() {
        println!("\nfailed:");
        failed.iter().for_each(|title| println!("  {title}"));
    }
    let cpu = cpu_of_children().as_secs_f64();
    println!("\nCPU time of the machines and of what made their programs: {cpu:.0} s");
    println!("\n{} passed, {} failed", chosen.len() - failed.len(), failed.len());
    ExitCode::from(u8::from(!failed.is_empty()))
}

impl Options {
    fn chooses(&self, case: &Case) -> bool {
        if self.names.is_empty() {
            return self.full || !case.only_in_full;
        }
        let title = case.title();
        self.names.iter().any(|name| title.contains(name.as_str()))
    }
}

/// The titles of those that failed.
fn run_all(cases: &[Case], bed: &Bed, jobs: usize) -> Vec<String> {
    let (idle, busy): (VecDeque<_>, VecDeque<_>) = cases.iter().partition(|case| case.waits && jobs > 1);
    let (idle, busy) = (Mutex::new(idle), Mutex::new(busy));
    let ended: Mutex<(usize, Vec<String>)> = Mutex::default();
    thread::scope(|scope| {
        for waiting in iter::repeat_n(&busy, jobs).chain([&idle]) {
            let ended = &ended;
            scope.spawn(move || {
                // Taken out first: a loop's condition would keep the lock while the case runs.
                let next = || lock(waiting).pop_front();
                while let Some(case) = next() {
                    let (start, cpu) = (Instant::now(), cpu_of_machines());
                    let result = case.run(bed);
                    let mut ended = lock(ended);
                    ended.0 += 1;
                    let word = if result.is_ok() { "ok" } else { "FAILED" };
                    let seconds = start.elapsed().as_secs_f64();
                    let cpu = (cpu_of_machines() - cpu).as_secs_f64();
                    let title = case.title();
                    println!("[{:3}/{}] {word:6} {title} ({seconds:.1} s, CPU {cpu:.1} s)", ended.0, cases.len());
                    if let Err(failure) = result {
                        println!("{failure}");
                        ended.1.push(case.title());
                    }
                    // A pipe that nobody reads is no reason to stop.
                    let _ = std::io::stdout().flush();
                }
            });
        }
    });
    ended.into_inner().unwrap_or_else(PoisonError::into_inner).1
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
