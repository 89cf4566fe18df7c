//! Builds small trees, correct or broken.
#![forbid(unsafe_code)]

use std::{string::String, vec::Vec};

/// A blob in the making. Nothing is checked: that is what the code under test is for.
#[derive(Clone, Default)]
pub(super) struct Build {
    pub(super) structure: Vec<u8>,
    pub(super) strings: Vec<u8>,
    pub(super) reservations: Vec<(u64, u64)>,
}

impl Build {
    /// A word of the structure block.
    pub(super) fn word(mut self, word: u32) -> Self {
        self.structure.extend(word.to_be_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.structure.extend(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn begin(self, name: &str) -> Self {
        self.word(1).bytes(&[name.as_bytes(), b"\0"].concat())
    }

    pub(super) fn end(self) -> Self {
        self.word(2)
    }

    pub(super) fn raw(mut self, name: &str, value: &[u8]) -> Self {
        let at = self.strings.len() as u32;
        self.strings.extend([name.as_bytes(), b"\0"].concat());
        self.word(3).word(value.len() as u32).word(at).bytes(value)
    }

    pub(super) fn text(self, name: &str, value: &str) -> Self {
        self.raw(name, &[value.as_bytes(), b"\0"].concat())
    }

    pub(super) fn cells(self, name: &str, cells: &[u32]) -> Self {
        self.raw(name, &cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<_>>())
    }

    /// A node with these properties of cells, and `compatible` unless that is empty.
    pub(super) fn node(self, name: &str, compatible: &str, properties: &[(&str, &[u32])]) -> Self {
        let mut this = self.begin(name);
        if !compatible.is_empty() {
            this = this.text("compatible", compatible);
        }
        properties.iter().fold(this, |this, (name, cells)| this.cells(name, cells)).end()
    }

    pub(super) fn memory(self, name: &str, reg: &[u32]) -> Self {
        self.begin(name).text("device_type", "memory").cells("reg", reg).end()
    }

    /// A root with two address cells and one size cell, left open.
    pub(super) fn root() -> Self {
        Self::default().begin("").cells("#address-cells", &[2]).cells("#size-cells", &[1])
    }

    /// A CPU, a GICv2, a timer.
    pub(super) fn rest(self) -> Self {
        self.begin("cpus").rest_in_cpus()
    }

    /// The same where `/cpus` is open and has something of its own.
    pub(super) fn rest_in_cpus(self) -> Self {
        self.cells("#address-cells", &[1])
            .cells("#size-cells", &[0])
            .begin("cpu@0")
            .text("device_type", "cpu")
            .cells("reg", &[0])
            .end()
            .end()
            .node(
                "gic",
                "arm,gic-400",
                &[("reg", &[0, 0x1000, 0x1000, 0, 0x2000, 0x2000, 0, 0x4000, 0x2000, 0, 0x6000, 0x2000])],
            )
    }

    /// Ends the root and puts the blocks together.
    pub(super) fn blob(self) -> Vec<u8> {
        self.end().word(9).unfinished()
    }

    /// Puts the blocks together as they are.
    pub(super) fn unfinished(self) -> Vec<u8> {
        let reservations = self.reservations.iter().chain([&(0, 0)]);
        let reservations: Vec<u8> =
            reservations.flat_map(|(a, s)| [a.to_be_bytes(), s.to_be_bytes()].concat()).collect();
        let structure = 40 + reservations.len();
        let strings = structure + self.structure.len();
        let total = strings + self.strings.len();
        let fields = [0xd00d_feed, total, structure, strings, 40, 17, 16, 0, self.strings.len(), self.structure.len()];
        let header: Vec<u8> = fields.into_iter().flat_map(|field| (field as u32).to_be_bytes()).collect();
        [header, reservations, self.structure, self.strings].concat()
    }

    /// A complete machine whose memory nodes have these `reg` values.
    pub(super) fn machine(banks: &[&[u32]]) -> Vec<u8> {
        let name = |index: usize| String::from_iter(["memory@", ["0", "1", "2", "3", "4"][index]]);
        banks.iter().enumerate().fold(Self::root(), |this, (index, reg)| this.memory(&name(index), reg)).rest().blob()
    }
}

/// The blob with `count` NOPs before every token of its structure block.
pub(super) fn with_nops(blob: &[u8], count: usize) -> Vec<u8> {
    let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, strings) = (word(8), word(12));
    let mut built = Build { strings: blob[strings..strings + word(32)].to_vec(), ..Build::default() };
    loop {
        let start = at;
        built.structure.extend([0, 0, 0, 4].repeat(count));
        at += 4;
        match word(start) {
            1 => at += (blob[at..].iter().position(|b| *b == 0).unwrap() + 1).next_multiple_of(4),
            3 => at += 8 + word(at).next_multiple_of(4),
            _ => {}
        }
        built.structure.extend(&blob[start..at]);
        if word(start) == 9 {
            return built.unfinished();
        }
    }
}

/// The blob as version 16, which has no size of the structure block.
pub(super) fn as_version_16(blob: &[u8]) -> Vec<u8> {
    let mut old = blob.to_vec();
    old[20..24].copy_from_slice(&16u32.to_be_bytes());
    old[36..40].copy_from_slice(&[0xff; 4]);
    old
}
