//! What only real hardware would show: the order of barriers and of writes to registers, on which QEMU and the simulated machine do not depend. It is read from the sources.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Rust and assembly of the core, by name, without comments.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "S") {
                out.push(path);
            }
        }
    }
    let mut paths = vec![];
    ["src", "boot"].iter().for_each(|dir| walk(&root().join(dir), &mut paths));
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), without_comments(&fs::read_to_string(path).unwrap()))).collect()
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// The functions of a file: from one `fn` to the next.
fn functions(text: &str) -> Vec<&str> {
    let mut starts: Vec<_> = text.match_indices("fn ").map(|(at, _)| at).collect();
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// The function that begins like this, to its end at the line's start.
fn function(file: &str, start: &str) -> String {
    let text = without_comments(&read(file));
    let at = text.find(start).unwrap_or_else(|| panic!("{file} has no {start}"));
    text[at..].split("\n}").next().unwrap().to_owned()
}

/// Whether these stand in `text`, in this order.
#[track_caller]
fn assert_order(text: &str, wanted: &[&str]) {
    let mut rest = text;
    for part in wanted {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not where it should be ({wanted:?}):\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

const MAINTENANCE: &str = "src/abstract_machine/cpu/maintenance.rs";

/// Whether it has TLB maintenance for all CPUs.
fn broadcasts(text: &str) -> bool {
    text.split("tlbi ").skip(1).any(|rest| {
        let name = rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        name.ends_with("is") || name.ends_with("os")
    })
}

#[test]
fn cve_2025_10263_what_tells_all_cpus_to_forget_waits_behind_a_second_tlbi() {
    let mut told = 0;
    for (file, text) in sources() {
        if file != MAINTENANCE {
            assert!(!broadcasts(&text), "{file}: TLB maintenance for all CPUs stands in {MAINTENANCE}");
            continue;
        }
        for function in functions(&text).into_iter().filter(|function| broadcasts(function)) {
            let name = function.split('(').next().unwrap();
            if name == "fn wait_for_all" {
                assert_order(function, &["\"dsb ish\", \"tlbi vale2is, xzr\", \"dsb ish\", \"isb\""]);
                continue;
            }
            let last = function.rfind("tlbi").unwrap();
            assert!(function[last..].contains("wait_for_all();"), "{name} does not wait:\n{function}");
            told += 1;
        }
    }
    assert_eq!(told, 5, "functions that tell all CPUs");
}
