//! What a VM is to be, before it is made.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;

/// A piece of a VM's start: where, and what.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Address in the VM.
    pub gpa: u64,
    /// Content.
    pub bytes: &'a [u8],
}

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Name.
    pub name: &'a str,
    /// Protected: with this manifest.
    pub manifest: Option<&'a [u8]>,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
    /// Kernel, device tree, initrd, in this order.
    pub images: Vec<Image<'a>>,
    /// Where vCPU 0 starts.
    pub entry: u64,
    /// x0 of vCPU 0.
    pub x0: u64,
    /// Its console goes out as it comes.
    pub raw_console: bool,
}

/// What a VM is, apart from what is in it.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Name.
    pub name: String,
    /// Its memory is its own.
    pub protected: bool,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
    /// Its console goes out as it comes.
    pub raw_console: bool,
}

impl Plan<'_> {
    /// What it makes, without its content.
    pub fn shape(&self) -> Shape {
        let Self { vcpus, memory, raw_console, .. } = *self;
        Shape { name: self.name.into(), protected: self.manifest.is_some(), vcpus, memory, raw_console }
    }
}
