//! The kill table of the layers: each fault is planted in a copy of the sources, and some test must notice it.
//!
//! The quick test only checks that each fault can still be planted. The long one plants them, one after the other, in
//! `target/seeded_faults`: `cargo test --test seeded_faults -- --ignored --nocapture`; some minutes for each fault on a
//! busy machine, over an hour for all on an idle one. It prints which tests noticed which fault.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

mod faults;

use faults::FAULTS;

/// Those that take a second, and those that are asked if nobody has noticed yet.
const TESTS: [&[&str]; 2] = [
    &["tables", "pages", "vm_pages", "traps", "noninterference", "small_world", "locks_explored", "concurrency"],
    &["lib", "lifecycle", "vcpus", "authentic_boot", "small_vm_world", "kill_table", "refinement"],
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_fault_can_be_planted() {
    for fault in FAULTS {
        let text = fs::read_to_string(root().join(fault.file)).unwrap();
        assert_eq!(text.matches(fault.from).count(), 1, "{}: {} has changed", fault.name, fault.file);
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(|_| ());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "target" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Runs tests in `place`; the names of those that failed, or `None` if none did.
fn failures(place: &Path, tests: &[&str]) -> Option<Vec<String>> {
    // A fault may hang a test: that is noticed too.
    let mut cargo = Command::new("timeout");
    cargo.args(["300", env!("CARGO"), "test", "--offline", "--quiet", "--no-fail-fast"]);
    tests.iter().for_each(|test| {
        let target: &[&str] = if *test == "lib" { &["--lib"] } else { &["--test", test] };
        cargo.args(target);
    });
    cargo.current_dir(place).env("CARGO_TARGET_DIR", place.join("target")).env("RUST_BACKTRACE", "0");
    let output = cargo.env("RUSTFLAGS", "-Awarnings").stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("could not compile"), "{text}");
    let names = text.lines().filter_map(|line| line.strip_prefix("    "));
    let mut names: Vec<_> = names.filter(|name| !name.contains([' ', '`'])).map(String::from).collect();
    names.sort();
    names.dedup();
    Some(names)
}

#[test]
#[ignore = "long: builds and runs all tests once for each fault"]
fn every_fault_planted_in_the_layers_is_noticed() {
    let place = root().join("target/seeded_faults");
    fs::create_dir_all(&place).unwrap();
    for part in ["src", "tests", "scripts", "kserv", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml"] {
        if part == "src" || part == "tests" {
            let _ = fs::remove_dir_all(place.join(part));
        }
        copy(&root().join(part), &place.join(part)).unwrap();
    }
    TESTS.iter().for_each(|tests| assert_eq!(failures(&place, tests), None, "without a fault"));
    let only = env::var("COREVISOR_FAULT").unwrap_or_default();
    let mut survived = vec![];
    for fault in FAULTS.iter().filter(|fault| fault.name.contains(&only)) {
        let file = place.join(fault.file);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replacen(fault.from, fault.to, 1)).unwrap();
        let failed = TESTS.iter().find_map(|tests| failures(&place, tests));
        fs::write(&file, text).unwrap();
        match failed {
            Some(names) => println!("noticed by {:2}: {}: {}", names.len(), fault.name, names.join(" ")),
            None => survived.push(fault.name),
        }
    }
    assert!(survived.is_empty(), "not noticed: {survived:?}");
}
