//! The kill table of the layers: each fault is planted in a copy of the sources, and some test must notice it.
//!
//! The quick tests check that each fault can still be planted, and that `docs/kill-table.md` has a row for each. The long one, which
//! `scripts/kill-table` runs, plants them and writes that file.
#![forbid(unsafe_code)]

mod copy;
mod faults;
mod runner;
mod table;
mod today;

#[path = "../common/named.rs"]
mod named;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::{env, fs};

use corevisor_evidence::tell;
use faults::{Fault, all};
use runner::{Again, Outcome, Runner, TESTS};
use today::{Planted, Today, files_of};

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

/// By program, the names of its tests that run.
fn tests_that_run() -> BTreeMap<&'static str, BTreeSet<String>> {
    let of = |program: &str| {
        let texts = files_of(&root(), program).into_iter().map(|file| fs::read_to_string(file).unwrap());
        texts.flat_map(|text| named::tests_of(&text).into_iter().map(String::from).collect::<Vec<_>>()).collect()
    };
    TESTS.iter().map(|program| (*program, of(program))).collect()
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let text = fs::read_to_string(table_file()).unwrap();
    let run = tests_that_run();
    let is_there = |program: &str, test: &str| {
        let name = test.rsplit("::").next().unwrap();
        run.get(program).is_some_and(|names| names.contains(name))
    };
    let named = table::rows(&text).flat_map(|row| row.tests.into_iter().map(move |test| (row.by.clone(), test)));
    let missing: Vec<_> = named.filter(|(program, test)| !is_there(program, test)).collect();
    assert!(missing.is_empty(), "scripts/kill-table asks anew: {missing:?}");
}

#[test]
fn how_many_rows_were_measured_with_other_tests_than_todays_is_told() {
    let text = fs::read_to_string(table_file()).unwrap();
    let (today, planted) = (Today::of(&root()), Planted::read());
    let by: BTreeMap<_, _> = table::rows(&text).map(|row| (row.name, row.by)).collect();
    let rows: Vec<_> = all().filter_map(|fault| Some((fault, by.get(fault.name)?))).collect();
    let same = rows.iter().filter(|(fault, by)| planted.is_of(&today, fault, by)).count();
    let counts = [("rows", rows.len()), ("not planted since their file or tests changed", rows.len() - same)];
    tell("seeded_faults: the kill table", &counts.map(|(name, count)| (name, count as u64)));
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

    let again = match (env::var_os("COREVISOR_AGAIN"), env::var_os("COREVISOR_CHANGED")) {
        (Some(_), _) => Again::All,
        (None, Some(_)) => Again::Changed,
        (None, None) => Again::None,
    };
    let mut runner = Runner::new(&root(), again);
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
    let old: Vec<_> = faults.iter().filter(|fault| !runner.is_of_today(fault)).map(|fault| fault.name).collect();
    println!("{} not planted since their file or tests changed (--changed plants them): {}", old.len(), old.join("; "));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
