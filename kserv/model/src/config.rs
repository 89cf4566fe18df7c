//! The text `config` of the mini host's archive: one line per VM, and words that switch things on.
//!
//! ```text
//! # two VMs
//! vm name=vm0 kernel=vm0/kernel dtb=vm0/dtb initrd=vm0/initrd vcpus=2 memory=268435456 protected=1 manifest=vm0/manifest kind=image load=0x40200000 entry=0x40200000
//! vm name=vm1 kernel=vm1/kernel dtb=vm1/dtb vcpus=1 memory=0x4000000 protected=0 kind=flat load=0x40080000 entry=0x40080000
//! demo
//! seconds=5
//! ```
//! Words are separated by white space; from `#` to the end of the line is a comment. Numbers are decimal, or hexadecimal with `0x`.
#![forbid(unsafe_code)]

use core::fmt;

use corevisor_interface::calls::MAX_VCPUS;

use crate::layout::{PAGE, RAM_BASE, RAM_END};

/// How a kernel is loaded and entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An arm64 `Image`.
    Image,
    /// A flat binary.
    Flat,
}

/// One VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmConfig<'a> {
    /// Its name, for the console.
    pub name: &'a str,
    /// File of the kernel.
    pub kernel: &'a str,
    /// File of the device tree.
    pub dtb: &'a str,
    /// File of the initrd.
    pub initrd: Option<&'a str>,
    /// File of the manifest: protected VMs need one.
    pub manifest: Option<&'a str>,
    /// Number of vCPUs, 1 to `MAX_VCPUS`.
    pub vcpus: usize,
    /// Bytes of RAM, whole pages.
    pub memory: u64,
    /// Whether it is protected.
    pub protected: bool,
    /// What the kernel is.
    pub kind: Kind,
    /// Where the kernel is loaded.
    pub load: u64,
    /// Where vCPU 0 starts.
    pub entry: u64,
}

/// One line that says something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line<'a> {
    /// A VM.
    Vm(VmConfig<'a>),
    /// A word alone (`demo`), or `word=value`.
    Option(&'a str, Option<&'a str>),
}

/// What is wrong with a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong<'a> {
    /// The text is not UTF-8.
    NotText,
    /// This key is needed.
    Missing(&'static str),
    /// This key stands there twice.
    Twice(&'a str),
    /// There is no such key.
    UnknownKey(&'a str),
    /// A word of a VM's line has no `=`.
    NoValue(&'a str),
    /// The value of this key is not what it should be, or out of its range.
    Value(&'a str),
    /// An option's line has more than one word.
    TooMany,
}

/// What is wrong, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConfigError<'a> {
    /// Line, from 1.
    pub line: usize,
    /// What.
    pub wrong: Wrong<'a>,
}

impl fmt::Display for ConfigError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "config line {}: ", self.line)?;
        match self.wrong {
            Wrong::NotText => write!(f, "not UTF-8"),
            Wrong::Missing(key) => write!(f, "{key}= is missing"),
            Wrong::Twice(key) => write!(f, "{key}= stands there twice"),
            Wrong::UnknownKey(key) => write!(f, "there is no key {key}"),
            Wrong::NoValue(word) => write!(f, "{word} needs a value (key=value)"),
            Wrong::Value(key) => write!(f, "the value of {key} is wrong"),
            Wrong::TooMany => write!(f, "an option stands alone on its line"),
        }
    }
}

/// The lines of `text` that say something, in order.
///
/// # Errors
/// [`ConfigError`] for each line that is wrong; the next ones are read all the same.
pub fn lines(text: &[u8]) -> impl Iterator<Item = Result<Line<'_>, ConfigError<'_>>> {
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    lines.filter_map(|(n, bytes)| {
        let at = |wrong| ConfigError { line: n + 1, wrong };
        let Ok(line) = core::str::from_utf8(bytes) else { return Some(Err(at(Wrong::NotText))) };
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let first = words.next()?;
        Some(match first {
            "vm" => vm(words).map(Line::Vm).map_err(at),
            _ if words.next().is_some() => Err(at(Wrong::TooMany)),
            _ => Ok(match first.split_once('=') {
                Some((key, value)) => Line::Option(key, Some(value)),
                None => Line::Option(first, None),
            }),
        })
    })
}

/// A number, decimal or with `0x`.
pub fn number(text: &str) -> Option<u64> {
    // `from_str_radix` takes a sign.
    match text.strip_prefix("0x") {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

fn vm<'a>(words: impl Iterator<Item = &'a str>) -> Result<VmConfig<'a>, Wrong<'a>> {
    const KEYS: [&str; 11] =
        ["name", "kernel", "dtb", "initrd", "manifest", "vcpus", "memory", "protected", "kind", "load", "entry"];
    let mut values = [None; KEYS.len()];
    for word in words {
        let (key, value) = word.split_once('=').ok_or(Wrong::NoValue(word))?;
        let n = KEYS.iter().position(|known| *known == key).ok_or(Wrong::UnknownKey(key))?;
        if value.is_empty() {
            return Err(Wrong::NoValue(key));
        }
        if values[n].replace(value).is_some() {
            return Err(Wrong::Twice(key));
        }
    }
    let need = |n: usize| values[n].ok_or(Wrong::Missing(KEYS[n]));
    let within =
        |n: usize, fits: fn(u64) -> bool| number(need(n)?).filter(|value| fits(*value)).ok_or(Wrong::Value(KEYS[n]));
    let in_ram = |address: u64| (RAM_BASE..RAM_END).contains(&address);
    let protected = match need(7)? {
        "0" => false,
        "1" => true,
        _ => return Err(Wrong::Value("protected")),
    };
    let kind = match need(8)? {
        "image" => Kind::Image,
        "flat" => Kind::Flat,
        _ => return Err(Wrong::Value("kind")),
    };
    if protected && values[4].is_none() {
        return Err(Wrong::Missing("manifest"));
    }
    Ok(VmConfig {
        name: need(0)?,
        kernel: need(1)?,
        dtb: need(2)?,
        initrd: values[3],
        manifest: values[4],
        vcpus: within(5, |n| (1..=MAX_VCPUS).contains(&n))? as usize,
        memory: within(6, |n| n > 0 && n % PAGE == 0 && n <= RAM_END - RAM_BASE)?,
        protected,
        kind,
        load: within(9, in_ram)?,
        entry: within(10, in_ram)?,
    })
}
