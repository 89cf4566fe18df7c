//! A cpio archive in the "newc" form, as Linux unpacks it for its first root file system.
//!
//! Deterministic: the same entries give the same bytes (owner root, time 0, inode numbers in order). Archives can
//! be put one behind another; the kernel unpacks them all, later files over earlier ones.

use std::collections::BTreeSet;

/// An archive under construction.
///
/// Paths are absolute in the new root ("/bin/sh"); the folders above a path are made as needed.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    dirs: BTreeSet<String>,
}

const TYPE_DIR: u32 = 0o040000;
const TYPE_FILE: u32 = 0o100000;
const TYPE_SYMLINK: u32 = 0o120000;
const TYPE_CHAR: u32 = 0o020000;

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// A folder, mode 755, and those above it. Asking twice is no error.
    pub fn dir(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.dirs.contains(path) {
            return;
        }
        self.parents(path);
        self.dirs.insert(path.to_owned());
        self.entry(path, TYPE_DIR | 0o755, (0, 0), &[]);
    }

    /// A file with its permission bits.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parents(path);
        self.entry(path, TYPE_FILE | (mode & 0o7777), (0, 0), content);
    }

    /// A symbolic link at `path` that says `target`.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, TYPE_SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// A character device node.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, TYPE_CHAR | (mode & 0o7777), (major, minor), &[]);
    }

    /// The archive's bytes, with its end mark, padded so that another may follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, (0, 0), 0);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((above, _)) = path.trim_matches('/').rsplit_once('/') {
            self.dir(above);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        self.header(path.trim_matches('/'), mode, device, content.len());
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn header(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), size: usize) {
        // The field is 8 hexadecimal digits; nothing that goes into an initramfs comes near 4 GiB.
        let size = u32::try_from(size).expect("a file in an initramfs is under 4 GiB");
        let links = if mode & 0o170000 == TYPE_DIR { 2 } else { 1 };
        let name_size = name.len() as u32 + 1;
        self.bytes.extend_from_slice(b"070701");
        for field in [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Reads an archive back: (name, mode, content). Enough for what this module writes.
    pub(crate) fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == 0 {
                at += 1;
                continue;
            }
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&bytes[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            let data = (at + 110 + name_size).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            if name != "TRAILER!!!" {
                found.push((name, mode, bytes[data..data + size].to_vec()));
            }
            at = (data + size).next_multiple_of(4);
        }
        found
    }

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.file("/usr/bin/tool", 0o755, b"#!/bin/sh\n");
        archive.symlink("/bin", "usr/bin");
        archive.char_device("/dev/console", 0o600, 5, 1);
        archive.dir("/usr/bin");
        archive.finish()
    }

    #[test]
    fn what_goes_in_comes_out_with_folders_before_what_is_in_them() {
        let list = entries(&sample());
        let names: Vec<_> = list.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(
            names,
            [
                ("usr", 0o040755),
                ("usr/bin", 0o040755),
                ("usr/bin/tool", 0o100755),
                ("bin", 0o120777),
                ("dev", 0o040755),
                ("dev/console", 0o020600)
            ]
        );
        assert_eq!(list[2].2, b"#!/bin/sh\n");
        assert_eq!(list[3].2, b"usr/bin");
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn two_archives_can_stand_one_behind_the_other() {
        let both = [sample(), sample()].concat();
        assert_eq!(both.len() % 512, 0);
        assert_eq!(entries(&both).len(), 12);
    }

    #[test]
    fn a_device_node_has_its_numbers() {
        let bytes = sample();
        let at = bytes.windows(12).position(|w| w == b"dev/console\0").unwrap() - 110;
        assert_eq!(&bytes[at + 6 + 9 * 8..at + 6 + 11 * 8], b"0000000500000001");
    }
}
