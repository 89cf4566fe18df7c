//! With which tests the faults were planted: `docs/kill-table.planted`.
//!
//! A row of the table is what came of a fault at its time. A test that notices less since then leaves the row as it is, and nobody plants all
//! faults anew at each change. So for each fault a fingerprint is kept: of the fault, the file that it is planted in, and the program that noticed
//! with all that judges there. Where it is another one today the fault was not planted since they changed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::copy::files_below;
use super::faults::Fault;
use super::runner::TESTS;

/// What all test programs judge by.
const SHARED: &[&str] = &["tests/common", "tests/evidence/src", "src/spec", "src/abstract_machine/sim"];

const HEADER: &str = "# Written by scripts/kill-table: of each fault a fingerprint of its file and of the tests with which it was planted.\n";

/// The files with the tests of a program. Those of the core itself stand in its own files.
pub fn files_of(root: &Path, program: &str) -> Vec<PathBuf> {
    let single = root.join(format!("tests/{program}.rs"));
    if single.exists() {
        return vec![single];
    }
    let folder = if program == "lib" { root.join("src") } else { root.join("tests").join(program) };
    below(&folder)
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    if folder.exists() {
        files_below(folder, &mut |file| files.push(file.to_owned()));
    }
    files.sort();
    files
}

/// Of a file of the core, what is a test.
fn unit_tests<'a>(file: &Path, text: &'a str) -> &'a str {
    if file.file_stem().is_some_and(|stem| stem == "tests") {
        return text;
    }
    text.find("#[cfg(test)]").map_or("", |at| &text[at..])
}

/// Fingerprints of a tree of sources as it is now.
pub struct Today {
    root: PathBuf,
    /// By program.
    tests: BTreeMap<&'static str, [u8; 32]>,
}

impl Today {
    /// Of the sources in `root`.
    pub fn of(root: &Path) -> Self {
        let mut shared = Sha256::new();
        for file in SHARED.iter().flat_map(|folder| below(&root.join(folder))) {
            add(&mut shared, root, &file, |text| text);
        }
        let tests = TESTS.iter().map(|program| {
            let mut hash = shared.clone();
            for file in files_of(root, program) {
                add(&mut hash, root, &file, |text| if *program == "lib" { unit_tests(&file, text) } else { text });
            }
            (*program, hash.finalize().into())
        });
        Self { root: root.to_owned(), tests: tests.collect() }
    }

    /// Of `fault`, where `by` notices it; of all tests, if that is empty.
    pub fn fingerprint(&self, fault: &Fault, by: &str) -> String {
        let mut hash = Sha256::new();
        [fault.file, fault.from, fault.to].iter().for_each(|text| hash.update(format!("{} {text}", text.len())));
        hash.update(fs::read(self.root.join(fault.file)).unwrap());
        let asked = self.tests.iter().filter(|(program, _)| by.is_empty() || **program == by);
        asked.for_each(|(_, tests)| hash.update(tests));
        hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn add(hash: &mut Sha256, root: &Path, file: &Path, part: impl FnOnce(&str) -> &str) {
    let text = fs::read_to_string(file).unwrap();
    let part = part(&text);
    if !part.is_empty() {
        hash.update(format!("{} {} ", file.strip_prefix(root).unwrap().display(), part.len()));
        hash.update(part);
    }
}

/// What was planted, by the fault's name: its fingerprint then.
#[derive(Default)]
pub struct Planted(BTreeMap<String, String>);

impl Planted {
    fn file() -> PathBuf {
        super::root().join("docs/kill-table.planted")
    }

    /// From the file, if there is one.
    pub fn read() -> Self {
        Self::of(&fs::read_to_string(Self::file()).unwrap_or_default())
    }

    fn of(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(|line| line.split_once(' ')).map(|(print, name)| (name.into(), print.into())).collect())
    }

    fn text(&self) -> String {
        self.0.iter().fold(HEADER.into(), |text, (name, print)| format!("{text}{print} {name}\n"))
    }

    /// `fault` was planted now. Written at once: a run may be stopped.
    pub fn insert(&mut self, fault: &Fault, fingerprint: String) {
        self.0.retain(|name, _| super::all().any(|fault| fault.name == name));
        self.0.insert(fault.name.into(), fingerprint);
        fs::write(Self::file(), self.text()).unwrap();
    }

    /// Whether `fault` was planted where it would be planted today, and with the tests of today.
    pub fn is_of(&self, today: &Today, fault: &Fault, by: &str) -> bool {
        self.0.get(fault.name).is_some_and(|then| *then == today.fingerprint(fault, by))
    }
}

#[test]
fn a_fault_was_planted_with_other_tests_when_its_file_or_a_test_that_could_notice_has_changed() {
    let root = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let fault = Fault { name: "a: b", file: "src/a.rs", from: "x", to: "y", survives: None };
    write("src/a.rs", "x\n#[cfg(test)]\nmod tests;");
    write("tests/vcpus/main.rs", "1");
    write("tests/pages.rs", "1");
    let before = Today::of(root.path());
    let planted = ["vcpus", "pages", "lib", ""].map(|by| (by, before.fingerprint(&fault, by)));
    let planted: BTreeMap<_, _> = planted.into_iter().collect();
    let is_of_today =
        |by: &str| Planted::of(&format!("{HEADER}{} a: b\n", planted[by])).is_of(&Today::of(root.path()), &fault, by);
    assert!(["vcpus", "pages", "lib", ""].into_iter().all(is_of_today));
    assert!(!Planted::default().is_of(&before, &fault, "vcpus"), "nothing is known of it");
    // Each file, and who could have noticed with it.
    for (file, text, same) in [
        ("tests/pages.rs", "2", &["vcpus", "lib"][..]),
        ("tests/vcpus/exits.rs", "1", &["pages", "lib"]),
        ("src/b.rs", "x\n#[cfg(test)]\nmod tests {}", &["pages", "vcpus"]),
        ("src/c.rs", "x", &["pages", "vcpus", "lib", ""]),
        ("src/spec/vm.rs", "1", &[]),
        ("tests/common/vms.rs", "1", &[]),
        ("src/a.rs", "x \n#[cfg(test)]\nmod tests;", &[]),
    ] {
        let old = fs::read_to_string(root.path().join(file)).ok();
        write(file, text);
        let now: Vec<_> = ["pages", "vcpus", "lib", ""].into_iter().filter(|by| is_of_today(by)).collect();
        assert_eq!(now, same, "{file}");
        match old {
            Some(old) => write(file, &old),
            None => fs::remove_file(root.path().join(file)).unwrap(),
        }
    }
}
