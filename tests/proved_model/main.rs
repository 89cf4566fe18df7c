//! The model that Coq's proofs are about, next to the Rust specification: the same random operations, then the same results and the
//! same states, after each one.
//!
//! The model's side is a program that `proofs/check` extracts; it is named in COREVISOR_MODEL. `scripts/test proofs` builds it and runs these tests; by
//! `cargo test` alone they are ignored, and say so. A failure prints its seed, `COREVISOR_TEST_SEED=n` runs that one alone,
//! `COREVISOR_TEST_FACTOR=n` runs n times as many.
//!
//! What differs on purpose: the model's pools never end, its host maps page by page (each page that the specification's table leads to
//! must be one that the model lets the host map), and a VM's pool goes back in one step. `proofs/README.md` has the list.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;
mod lives;
mod pages;

use corevisor_evidence::tell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const PAGE: u64 = 4096;
const IA_BITS: u64 = 40;
/// Two banks, the second with a hole before it; and page 0.
const BANKS: [(u64, u64); 3] = [(0, 4), (0x4_0000, 1536), (0x4_0800, 300)];
/// Device registers; the first two pages are the GIC's virtual CPU interface.
const WINDOWS: (u64, u64) = (0x0800, 4);
const GICV_PAGES: u64 = 2;
/// The pools of the specification never end, as the model's do not.
const ENDLESS: usize = 1 << 30;

// ---- the model's side ---------------------------------------------------------------------------------------------------

struct Model {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Model {
    fn start() -> Self {
        let program = std::env::var("COREVISOR_MODEL").unwrap_or_else(|_| {
            panic!(
                "COREVISOR_MODEL does not name the program that is extracted from the proofs: run scripts/test proofs"
            )
        });
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut model = Self { child, to, from };
        let mut machine = format!("machine {IA_BITS} {} {GICV_PAGES}", WINDOWS.0);
        BANKS.iter().for_each(|(first, pages)| write!(machine, " ram {first} {pages}").unwrap());
        write!(machine, " window {} {}", WINDOWS.0, WINDOWS.1).unwrap();
        assert_eq!(model.ask(&machine), "done");
        model
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the model stopped");
        line.trim_end().to_string()
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.to, "{what}").unwrap();
        self.line()
    }

    fn show(&mut self, part: &str) -> BTreeSet<String> {
        writeln!(self.to, "show {part}").unwrap();
        let mut lines = BTreeSet::new();
        loop {
            let line = self.line();
            if line == "." {
                return lines;
            }
            lines.insert(line);
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // It ends at the end of its input; this is for a test that failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn same(model: &BTreeSet<String>, spec: &BTreeSet<String>, what: &str) {
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).take(12).cloned().collect::<Vec<_>>();
    assert!(model == spec, "after {what}\nonly the model: {:?}\nonly Rust: {:?}", only(model, spec), only(spec, model));
}

/// Says which seed failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with COREVISOR_TEST_SEED={}", self.0);
        }
    }
}

fn report(name: &str, most: &str, seeds: &[u64], steps: usize, compared: u64) {
    tell(
        &format!("proved_model: {name}"),
        &[("sequences", seeds.len() as u64), ("steps of each", steps as u64), ("operations compared", compared)],
    );
    println!(
        "{name}: model and Rust agree, {compared} operations compared with the whole state after each; seeds {:?}, {steps} steps each, at most {most} at once",
        (seeds.first(), seeds.last())
    );
}

fn joined(pages: impl Iterator<Item = u64>) -> String {
    pages.collect::<BTreeSet<_>>().iter().fold(String::new(), |line, page| format!("{line} {page}"))
}
