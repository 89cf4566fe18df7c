//! Plants faults, and asks the tests.
//!
//! One tree of sources and one of what is built from them serve for all faults, so that each costs one build of the core and of
//! the first test that notices. What is known is kept: `target/kill-table/known`, one file for each fault and the file that it is planted in; with which
//! tests, in `docs/kill-table.planted`.
#![forbid(unsafe_code)]

use std::fmt::{self, Display, Formatter};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use super::copy::{hash_of, keep_in_step};
use super::faults::Fault;
use super::table;
use super::today::{Planted, Today};

/// All that can notice; those that take a second first.
pub const TESTS: &[&str] = &[
    "pages",
    "vm_pages",
    "traps",
    "tables",
    "devices",
    "mediated",
    "seal",
    "authentic_boot",
    "hypercalls",
    "lib",
    "noninterference",
    "locks_explored",
    "concurrency",
    "small_world",
    "lifecycle",
    "vcpus",
    "small_vm_world",
    "kill_table",
    "refinement",
];

/// Which of them to ask first about a fault in a file.
const FIRST: &[(&str, &[&str])] = &[
    ("src/npt", &["tables", "vm_pages", "small_world"]),
    ("src/spt", &["devices"]),
    ("src/mmio", &["mediated", "lib"]),
    ("src/abstract_machine/stream_table", &["lib"]),
    ("src/memory/oracle", &["devices", "vm_pages"]),
    ("src/memory", &["vm_pages", "pages", "small_world"]),
    ("src/vm/seal", &["seal"]),
    ("src/vm/boot_core", &["lifecycle", "seal"]),
    ("src/vm/auth", &["authentic_boot"]),
    ("src/vm/boot_aux", &["authentic_boot"]),
    ("src/vm", &["lifecycle", "authentic_boot", "vcpus"]),
    ("src/vcpu", &["vcpus", "traps"]),
    ("src/trap/mem_handler", &["vcpus"]),
    ("src/trap", &["traps", "vcpus"]),
    ("src/locks", &["lib", "locks_explored"]),
    ("src/abstract_machine/turn", &["locks_explored"]),
];

/// What came of a fault.
#[derive(Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The test program and those of its tests that failed, or how it ended.
    Caught {
        by: String,
        how: Vec<String>,
    },
    Survived,
    /// It was no fault: what the compiler says.
    Unbuilt(String),
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught { by, how } => write!(f, "caught by {by}: {}", how.join(" ")),
            Self::Survived => write!(f, "survived"),
            Self::Unbuilt(why) => write!(f, "does not compile:\n{why}"),
        }
    }
}

/// How a test program ended.
enum Ended {
    Well,
    /// Its failed tests; a note in words if there are none.
    Badly(Vec<String>),
}

/// Which of the faults that are known are planted again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Again {
    None,
    /// Those that were planted with other tests.
    Changed,
    All,
}

/// The place where faults are planted.
pub struct Runner {
    place: PathBuf,
    /// What the tree holds, as a number.
    sources: String,
    again: Again,
    /// With which tests the faults were planted, and what these are now.
    planted: Planted,
    today: Today,
    /// From the table that is there: which test program noticed what the last time.
    earlier: Vec<table::Row>,
    /// Without a fault in it, everything is well there.
    checked: bool,
    /// A test that takes longer hangs.
    patience: Duration,
}

impl Runner {
    /// For the sources in `root` as they are now; what `again` says of what is known does not count.
    pub fn new(root: &Path, again: Again) -> Self {
        let place = root.join("target/kill-table");
        fs::create_dir_all(place.join("known")).unwrap();
        let text = fs::read_to_string(super::table_file()).unwrap_or_default();
        let parts = ["src", "tests", "scripts", "kserv", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"];
        fs::create_dir_all(place.join("tree")).unwrap();
        let mut hash = DefaultHasher::new();
        for part in parts {
            keep_in_step(&root.join(part), &place.join("tree").join(part));
            hash_of(&place.join("tree").join(part), &mut hash);
        }
        let sources = format!("{:016x}", hash.finish());
        // A compiler that was stopped leaves what the next one stumbles over.
        if place.join("running").exists() {
            let mut clean = Command::new(env!("CARGO"));
            clean.args(["clean", "--quiet", "--offline", "--package", "corevisor"]).current_dir(place.join("tree"));
            assert!(clean.env("CARGO_TARGET_DIR", place.join("built")).status().unwrap().success());
        }
        fs::write(place.join("running"), "").unwrap();
        let earlier = table::rows(&text).collect();
        // Of the copy: the sources may change while it is at work.
        let today = Today::of(&place.join("tree"));
        let (planted, patience) = (Planted::read(), Duration::ZERO);
        Self { place, sources, again, planted, today, earlier, checked: false, patience }
    }

    fn file(&self, fault: &Fault) -> PathBuf {
        let mut hash = DefaultHasher::new();
        (fault.name, fault.file, fault.from, fault.to).hash(&mut hash);
        fs::read(self.place.join("tree").join(fault.file)).unwrap().hash(&mut hash);
        self.place.join("known").join(format!("{:016x}", hash.finish()))
    }

    /// What is known of a fault.
    pub fn known(&self, fault: &Fault) -> Option<Outcome> {
        let text = fs::read_to_string(self.file(fault)).ok()?;
        let mut lines = text.lines().skip(1).map(String::from);
        Some(match lines.next() {
            Some(by) => Outcome::Caught { by, how: lines.collect() },
            None => Outcome::Survived,
        })
    }

    /// Whether what is said of a fault was measured with the file and the tests of today.
    pub fn is_of_today(&self, fault: &Fault) -> bool {
        let row = || self.earlier.iter().find(|row| row.name == fault.name).map(|row| row.by.clone());
        let by = match self.known(fault) {
            Some(Outcome::Caught { by, .. }) => by,
            Some(_) => String::new(),
            None => row().unwrap_or_default(),
        };
        self.planted.is_of(&self.today, fault, &by)
    }

    /// What comes of a fault: planted now, unless that is known.
    pub fn outcome(&mut self, fault: &Fault) -> Outcome {
        let again = match self.again {
            Again::None => false,
            Again::Changed => !self.is_of_today(fault),
            Again::All => true,
        };
        // Of what survived without a reason new tests are asked.
        let old = self.known(fault).filter(|old| *old != Outcome::Survived || fault.survives.is_some());
        if let Some(old) = old.filter(|_| !again) {
            return old;
        }
        self.prepare();
        let start = Instant::now();
        let file = self.place.join("tree").join(fault.file);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen(fault.from, fault.to, 1)).unwrap();
        let outcome = self.ask(fault);
        fs::write(&file, text).unwrap();
        let (by, lines): (_, Vec<_>) = match &outcome {
            Outcome::Caught { by, how } => {
                (by.as_str(), [fault.name, by].into_iter().chain(how.iter().map(String::as_str)).collect())
            }
            Outcome::Survived => ("", vec![fault.name]),
            Outcome::Unbuilt(_) => return outcome,
        };
        self.planted.insert(fault, self.today.fingerprint(fault, by));
        fs::write(self.file(fault), lines.join("\n")).unwrap();
        print!("({} s) ", start.elapsed().as_secs());
        outcome
    }

    /// In a tree that was not seen yet runs everything once without a fault.
    fn prepare(&mut self) {
        if self.checked {
            return;
        }
        let (file, hash) = (self.place.join("well"), self.sources.clone());
        let well = fs::read_to_string(&file).unwrap_or_default();
        let slowest = match well.split_once(' ').filter(|(of, _)| *of == hash) {
            Some((_, slowest)) => Duration::from_secs(slowest.parse().unwrap()),
            None => self.run_all(),
        };
        fs::write(file, format!("{hash} {}", slowest.as_secs())).unwrap();
        self.patience = (slowest * 5).max(Duration::from_secs(120));
        self.checked = true;
    }

    /// Runs all tests without a fault; how long the slowest took.
    fn run_all(&self) -> Duration {
        println!("running all tests once without a fault");
        let mut slowest = Duration::ZERO;
        for test in TESTS {
            self.build(test).unwrap_or_else(|why| panic!("without a fault {test} does not compile:\n{why}"));
            let start = Instant::now();
            if let Ended::Badly(how) = self.run(test, Duration::from_secs(3600)) {
                panic!("without a fault {test} fails: {}", how.join(" "));
            }
            slowest = slowest.max(start.elapsed());
            println!("  {test}: {} s", start.elapsed().as_secs());
        }
        slowest
    }

    fn ask(&self, fault: &Fault) -> Outcome {
        let first = FIRST.iter().find(|(start, _)| fault.file.starts_with(start)).map_or(&[][..], |(_, tests)| tests);
        let earlier = self.earlier.iter().find(|row| row.name == fault.name).map(|row| row.by.as_str());
        let mut asked: Vec<&str> = vec![];
        for test in earlier.into_iter().chain(first.iter().copied()).chain(TESTS.iter().copied()) {
            if asked.contains(&test) || !TESTS.contains(&test) {
                continue;
            }
            asked.push(test);
            if let Err(why) = self.build(test) {
                return Outcome::Unbuilt(why);
            }
            if let Ended::Badly(how) = self.run(test, self.patience) {
                return Outcome::Caught { by: test.into(), how };
            }
        }
        Outcome::Survived
    }

    fn cargo(&self, test: &str, limit: Option<Duration>) -> Command {
        let mut command = match limit {
            Some(limit) => {
                let mut command = Command::new("timeout");
                command.arg(limit.as_secs().to_string()).arg(env!("CARGO"));
                command
            }
            None => Command::new(env!("CARGO")),
        };
        command.args(["test", "--offline", "--quiet", "--no-fail-fast"]);
        if test == "lib" {
            command.arg("--lib")
        } else {
            command.args(["--test", test])
        };
        command.current_dir(self.place.join("tree")).env("CARGO_TARGET_DIR", self.place.join("built"));
        // Nobody debugs what is built here.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_TEST_DEBUG", "0");
        command.env("RUST_BACKTRACE", "0").env("RUSTFLAGS", "-Awarnings").stdin(Stdio::null());
        command
    }

    fn build(&self, test: &str) -> Result<(), String> {
        let output = self.cargo(test, None).arg("--no-run").output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn run(&self, test: &str, limit: Duration) -> Ended {
        let output = self.cargo(test, Some(limit)).output().unwrap();
        if output.status.success() {
            return Ended::Well;
        }
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let names = text.lines().filter_map(|line| line.strip_prefix("    "));
        let mut names: Vec<_> = names.filter(|name| !name.contains([' ', '`'])).map(String::from).collect();
        names.sort();
        names.dedup();
        match (names.is_empty(), output.status.code()) {
            (false, _) => Ended::Badly(names),
            (true, Some(124)) => Ended::Badly(vec!["(it does not end)".into()]),
            (true, _) => {
                let signal = text.lines().find_map(|line| line.split_once("(signal: ")).map(|(_, rest)| rest);
                let signal = signal.unwrap_or_else(|| panic!("{test}: neither a failed test nor a signal:\n{text}"));
                Ended::Badly(vec![format!("(it ends with signal {})", signal.trim_end_matches(')'))])
            }
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.place.join("running"));
    }
}
