//! The trees, with the memory that boot loaders fill in.

use corevisor::abstract_machine::addr::{Pa, PhysRange};
use dtoolkit::{Node, Property};
use std::path::{Path, PathBuf};

use super::oracle::{self, reader};

/// A board's tree.
pub struct Board {
    /// Maker and file: `freescale/imx8mp-evk.dtb`.
    pub name: String,
    /// The tree as a boot loader hands it over.
    pub blob: Vec<u8>,
}

/// Memory that a boot loader fills in: 2 GiB at the first of these places where no device is.
const PLACES: [u64; 5] = [0x8000_0000, 0x4000_0000, 0, 0x8_0000_0000, 0x100_0000_0000];
const SIZE: u64 = 1 << 30;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/host/dtbs")
}

/// All trees, in the order of their names.
pub fn boards() -> impl Iterator<Item = Board> {
    let folder = folder();
    let mut files = Vec::new();
    find(&folder, &mut files);
    assert!(files.len() > 900, "{} has {} device trees: run scripts/setup dtbs", folder.display(), files.len());
    files.sort();
    files.into_iter().map(move |file| {
        let name = file.strip_prefix(&folder).expect("found in it").display().to_string();
        let blob = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Board { blob: with_memory(blob), name }
    })
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry of a folder that can be read").path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "dtb") {
            files.push(path);
        }
    }
}

/// `blob` with a node `ram@...`, if it has no memory with a size.
fn with_memory(mut blob: Vec<u8>) -> Vec<u8> {
    let fdt = reader(&blob);
    let root = fdt.root();
    let has_memory = root.children().any(|node| {
        let is_memory = node.property("device_type").is_some_and(|kind| kind.value() == b"memory\0");
        is_memory
            && node
                .reg()
                .ok()
                .flatten()
                .is_some_and(|reg| reg.into_iter().any(|entry| entry.size::<u64>().is_ok_and(|size| size != 0)))
    });
    if has_memory {
        return blob;
    }
    let devices = oracle::all_ranges(&blob);
    let at = PLACES.into_iter().find(|base| {
        let bank = PhysRange::new(Pa::new(*base), SIZE).expect("below 48 bits");
        !devices.iter().any(|range| range.overlaps(bank))
    });
    let at = at.expect("devices at every place");
    let cells = |name| root.property(name).map_or(2, |cells| cells.value()[3]);
    let number = |value: u64, cells: u8| value.to_be_bytes()[8 - usize::from(cells) * 4..].to_vec();
    let reg = [number(at, cells("#address-cells")), number(SIZE, cells("#size-cells"))].concat();
    insert(&mut blob, &reg);
    blob
}

/// Puts a memory node behind the root's last child: structure and strings move to the blob's end.
fn insert(blob: &mut Vec<u8>, reg: &[u8]) {
    let word = |blob: &[u8], at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().expect("four bytes")) as usize;
    let (structure, strings) = (word(blob, 8), word(blob, 12));
    let (strings_size, structure_size) = (word(blob, 32), word(blob, 36));
    let mut nodes = blob[structure..structure + structure_size].to_vec();
    let mut names = blob[strings..strings + strings_size].to_vec();
    let tail = nodes.split_off(nodes.len() - 8);
    assert_eq!(tail, [0, 0, 0, 2, 0, 0, 0, 9], "the end of the root and of the tree");
    nodes.extend(b"\0\0\0\x01ram@0\0\0\0");
    for (name, value) in [("device_type", &b"memory\0"[..]), ("reg", reg)] {
        nodes.extend(3_u32.to_be_bytes());
        nodes.extend((value.len() as u32).to_be_bytes());
        nodes.extend((names.len() as u32).to_be_bytes());
        nodes.extend(value);
        nodes.resize(nodes.len().next_multiple_of(4), 0);
        names.extend(name.as_bytes());
        names.push(0);
    }
    nodes.extend(2_u32.to_be_bytes());
    nodes.extend(tail);
    blob.resize(blob.len().next_multiple_of(8), 0);
    let fields = [(8, blob.len()), (12, blob.len() + nodes.len()), (32, names.len()), (36, nodes.len())];
    for (at, value) in fields {
        blob[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
    }
    blob.extend(nodes);
    blob.extend(names);
    let size = blob.len() as u32;
    blob[4..8].copy_from_slice(&size.to_be_bytes());
}
