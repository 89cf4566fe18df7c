//! The kill table of the layers: each fault is planted in a copy of the sources, and some test must notice it.
//!
//! The quick tests check that each fault can still be planted, and that `docs/kill-table.md` has a row for each. The long one, which
//! `scripts/kill-table` runs, plants them and writes that file.
#![forbid(unsafe_code)]

mod copy;
mod faults;
mod runner;
mod table;

use std::path::PathBuf;
use std::{env, fs};

use faults::{Fault, all};
use runner::{Outcome, Runner};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn table_file() -> PathBuf {
    root().join("docs/kill-table.md")
}

#[test]
fn every_fault_can_be_planted() {
    for fault in all() {
        let text = fs::read_to_string(root().join(fault.file)).unwrap();
        assert_eq!(text.matches(fault.from).count(), 1, "{}: {} has changed", fault.name, fault.file);
        assert_ne!(fault.from, fault.to, "{}", fault.name);
    }
}

#[test]
fn no_two_faults_have_one_name() {
    let mut names: Vec<_> = all().map(|fault| fault.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn the_table_in_docs_has_exactly_these_faults() {
    let text = fs::read_to_string(table_file()).unwrap();
    let rows: Vec<_> = table::rows(&text).map(|row| row.name).collect();
    let names: Vec<_> = all().map(|fault| fault.name.to_owned()).collect();
    assert_eq!(rows, names, "scripts/kill-table makes the table anew");
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let text = fs::read_to_string(table_file()).unwrap();
    let mut sources = String::new();
    for part in ["src", "tests"] {
        copy::files_below(&root().join(part), &mut |file| sources += &fs::read_to_string(file).unwrap_or_default());
    }
    let missing: Vec<_> = table::rows(&text)
        .flat_map(|row| row.tests)
        .filter(|test| !sources.contains(&format!("fn {}(", test.rsplit("::").next().unwrap())))
        .collect();
    assert!(missing.is_empty(), "scripts/kill-table asks anew: {missing:?}");
}

#[test]
#[ignore = "long: scripts/kill-table"]
fn every_fault_planted_in_the_layers_is_noticed() {
    let parts = env::var("COREVISOR_FAULTS").unwrap_or_default();
    let parts: Vec<_> = parts.lines().filter(|part| !part.is_empty()).collect();
    let faults: Vec<&Fault> = all().collect();
    let only_known = env::var_os("COREVISOR_ONLY_KNOWN").is_some();
    let chosen =
        |fault: &Fault| !only_known && (parts.is_empty() || parts.iter().any(|part| fault.name.contains(part)));
    assert!(only_known || faults.iter().any(|fault| chosen(fault)), "no fault has one of {parts:?} in its name");

    let mut runner = Runner::new(&root(), env::var_os("COREVISOR_AGAIN").is_some());
    let mut wrong = vec![];
    for (n, fault) in faults.iter().enumerate().filter(|(_, fault)| chosen(fault)) {
        print!("[{}/{}] {}: ", n + 1, faults.len(), fault.name);
        let outcome = runner.outcome(fault);
        println!("{outcome}");
        match (&outcome, fault.survives) {
            (Outcome::Caught { .. }, None) | (Outcome::Survived, Some(_)) => {}
            (Outcome::Caught { .. }, Some(_)) => wrong.push(format!("{}: caught, and explained", fault.name)),
            (Outcome::Survived, None) => wrong.push(format!("{}: nothing notices it", fault.name)),
            (Outcome::Unbuilt(_), _) => wrong.push(format!("{}: does not compile", fault.name)),
        }
    }
    let rows: Vec<_> = faults.iter().map(|fault| (*fault, runner.known(fault))).collect();
    let earlier = fs::read_to_string(table_file()).unwrap_or_default();
    fs::write(table_file(), table::text(&root(), &rows, &earlier)).unwrap();
    println!("written: {}", table_file().display());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
