//! Writes the seeds of the fuzz targets, `fuzz/corpus/TARGET/seed-*`: real files where a target reads files, else numbers that make it do something.
#![forbid(unsafe_code)]

use std::path::Path;
use std::{fs, io};

use corevisor_fuzzed::{TARGETS, files_of_each_kind, numbers};

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (target, _) in TARGETS {
        let dir = root.join("fuzz/corpus").join(target);
        fs::create_dir_all(&dir)?;
        let seeds = match *target {
            "files" => files_of_each_kind(),
            "trees" => vec![fs::read(root.join("tests/data/dtb/virt-gicv2.dtb"))?],
            // Each input is a whole VM with its signature: a few bytes say what is changed.
            "snapshots" => (1..8).map(|seed| numbers(seed, 12)).collect(),
            _ => (1..4).map(|seed| numbers(seed, 700)).collect(),
        };
        for (n, seed) in seeds.iter().enumerate() {
            fs::write(dir.join(format!("seed-{}", n + 1)), seed)?;
        }
        println!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}
