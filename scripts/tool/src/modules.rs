//! Which kernel modules to load, in which order: what `modprobe` does with `modules.dep`, ahead of time.

use crate::error::{FileError, read, read_text};
use std::{collections::BTreeSet, path::Path};
use thiserror::Error;

/// Modules cannot be had.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// A file of the module tree cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A module that is neither there nor built in.
    #[error("the kernel of {tree} has no module {name} and does not have it built in")]
    Missing {
        /// The module's name.
        name: String,
        /// The module tree.
        tree: String,
    },
    /// A compressed module that does not unpack.
    #[error("cannot unpack {path}: {reason}")]
    Packed {
        /// The module's file.
        path: String,
        /// What the unpacker said.
        reason: String,
    },
}

/// A module to load.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Its path in the tree, without a compression's suffix: `kernel/net/core/failover.ko`.
    pub path: String,
    /// The file, unpacked.
    pub content: Vec<u8>,
}

/// The modules of `names` and what they need, from the tree at `dir`, in the order to load them; those of
/// `optional` too, as far as the kernel has them.
///
/// # Errors
/// [`ModuleError`] names the module or file.
pub fn load_list(dir: &Path, names: &[&str], optional: &[&str]) -> Result<Vec<Module>, ModuleError> {
    let deps = read_text(&dir.join("modules.dep"))?;
    let builtin = read_text(&dir.join("modules.builtin"))?;
    let there = optional.iter().filter(|name| order(&deps, &builtin, &[name]).is_ok());
    let names: Vec<&str> = names.iter().chain(there).copied().collect();
    let paths = order(&deps, &builtin, &names)
        .map_err(|name| ModuleError::Missing { name, tree: dir.display().to_string() })?;
    paths
        .into_iter()
        .map(|path| {
            let file = dir.join(path);
            let packed = read(&file)?;
            let (path, content) = unpack(path, packed)
                .map_err(|reason| ModuleError::Packed { path: file.display().to_string(), reason })?;
            Ok(Module { path, content })
        })
        .collect()
}

/// The paths to load for `names`, each after what it needs. Built-in ones need nothing. The error is the name
/// that is not there.
fn order<'a>(deps: &'a str, builtin: &str, names: &[&str]) -> Result<Vec<&'a str>, String> {
    let lines = || deps.lines().filter_map(|line| line.split_once(':'));
    let mut list = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        let Some((path, needs)) = lines().find(|(path, _)| is_called(path, name)) else {
            if builtin.lines().any(|path| is_called(path, name)) {
                continue;
            }
            return Err((*name).to_owned());
        };
        // modules.dep names all that a module needs, the innermost last.
        for path in needs.split_whitespace().rev().chain([path]) {
            if seen.insert(path) {
                list.push(path);
            }
        }
    }
    Ok(list)
}

/// Whether the file at `path` is the module `name`; `-` and `_` are the same in a module's name.
fn is_called(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    stem.replace('-', "_") == name.replace('-', "_")
}

fn unpack(path: &str, bytes: Vec<u8>) -> Result<(String, Vec<u8>), String> {
    if let Some(plain) = path.strip_suffix(".xz") {
        let mut content = Vec::new();
        lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut content).map_err(|e| format!("{e:?}"))?;
        return Ok((plain.to_owned(), content));
    }
    if path.ends_with(".ko") {
        return Ok((path.to_owned(), bytes));
    }
    Err("only .ko and .ko.xz are known here".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPS: &str = "kernel/net/core/failover.ko:\n\
        kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko\n\
        kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko\n\
        kernel/drivers/virtio/virtio-mmio.ko:\n";
    const BUILTIN: &str = "kernel/drivers/virtio/virtio_pci.ko\n";

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        let paths = order(DEPS, BUILTIN, &["virtio_mmio", "virtio_pci", "virtio_net", "failover"]).unwrap();
        assert_eq!(
            paths,
            [
                "kernel/drivers/virtio/virtio-mmio.ko",
                "kernel/net/core/failover.ko",
                "kernel/drivers/net/net_failover.ko.xz",
                "kernel/drivers/net/virtio_net.ko"
            ]
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        assert_eq!(order(DEPS, BUILTIN, &["virtio"]), Err("virtio".to_owned()));
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut &b"module"[..], &mut packed).unwrap();
        assert_eq!(unpack("a/b.ko.xz", packed), Ok(("a/b.ko".into(), b"module".to_vec())));
        assert_eq!(unpack("a/b.ko", b"x".to_vec()), Ok(("a/b.ko".into(), b"x".to_vec())));
        assert!(unpack("a/b.ko.zst", Vec::new()).is_err());
        assert!(unpack("a/b.ko.xz", b"no xz".to_vec()).is_err());
    }
}
