//! The corpus of every fuzz target, given to it once: what was found stays found.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

use corevisor_fuzzed::{TARGETS, run};

/// Most bytes of the corpus.
const MOST: u64 = 200 << 10;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files in `dir`, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn every_target_bears_its_corpus() {
    for (name, _) in TARGETS {
        let inputs = files(&root().join("fuzz/corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            println!("{}", input.display());
            run(name, &fs::read(&input).unwrap());
        }
    }
}

#[test]
fn the_real_device_trees_are_a_corpus_too() {
    for input in
        files(&root().join("tests/data/dtb")).iter().filter(|file| file.extension().is_some_and(|e| e == "dtb"))
    {
        run("trees", &fs::read(input).unwrap());
    }
}

#[test]
fn every_target_has_a_program_and_the_corpus_is_small() {
    let mut size = 0;
    for (name, _) in TARGETS {
        let program = fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("run(\"{name}\"")), "{name}");
        let inputs = files(&root().join("fuzz/corpus").join(name));
        size += inputs.iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
    }
    assert_eq!(files(&root().join("fuzz/fuzz_targets")).len(), TARGETS.len());
    assert_eq!(files(&root().join("fuzz/corpus")).len(), TARGETS.len());
    assert!(size < MOST, "{size} bytes");
}
