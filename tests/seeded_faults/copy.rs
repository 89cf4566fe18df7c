//! A second tree of the sources, kept in step with the first one.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::Path;

/// What is in a folder, without what cargo builds.
fn names(dir: &Path) -> BTreeSet<OsString> {
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    all.filter(|name| name != "target").collect()
}

/// Feeds `hash` all names and texts below `path`.
pub fn hash_of(path: &Path, hash: &mut impl Hasher) {
    path.hash(hash);
    if path.is_dir() {
        names(path).iter().for_each(|name| hash_of(&path.join(name), hash));
    } else {
        fs::read(path).unwrap().hash(hash);
    }
}

/// Makes `to` what `from` is, and touches only files that differ: what was built from the others stays built.
pub fn keep_in_step(from: &Path, to: &Path) {
    if !from.is_dir() {
        let text = fs::read(from).unwrap();
        if fs::read(to).ok().as_ref() != Some(&text) {
            fs::write(to, text).unwrap();
        }
        return;
    }
    fs::create_dir_all(to).unwrap();
    let wanted = names(from);
    for name in names(to).difference(&wanted) {
        let old = to.join(name);
        if old.is_dir() { fs::remove_dir_all(old).unwrap() } else { fs::remove_file(old).unwrap() }
    }
    wanted.iter().for_each(|name| keep_in_step(&from.join(name), &to.join(name)));
}

/// Calls `each` with every Rust file below `dir`.
pub fn files_below(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, each);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            each(&path);
        }
    }
}
