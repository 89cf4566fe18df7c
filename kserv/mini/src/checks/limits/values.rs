//! What an argument of a call may be: at, below and above its limits, and addresses of everybody.
#![forbid(unsafe_code)]

use alloc::vec;
use alloc::vec::Vec;

use corevisor_interface::calls::{HostCall, MAX_IMAGES, MAX_PAGES, MAX_RUNS, MAX_VCPUS, MAX_VMS};
use kserv_model::layout::{GICC_BASE, RAM_BASE};

use super::states::Place;
use crate::pages::{BLOCK, PAGE};

/// Bits of a test VM's addresses.
pub const IPA_BITS: u64 = 36;
/// A page number that wraps around to 0 in bytes.
const WRAPS: u64 = 1 << 52;

/// What this host has, and what it has not.
pub struct Places {
    /// Where each thing of the VM under test is.
    pub of: [u64; Place::COUNT],
    /// The pages that calls may take: two blocks, behind which the VM's own pages are.
    pub free: u64,
    /// Of the VM that is attacked: private pages, the page that it shows.
    pub foreign: Vec<u64>,
    /// This host's pages that are lent to it: mailboxes.
    pub lent: Vec<u64>,
    /// Addresses that are nobody's to give: the core's, devices, holes.
    pub forbidden: Vec<u64>,
    /// The end of RAM.
    pub end: u64,
    /// Number of the VM under test, and of the one that is attacked.
    pub vms: [u64; 2],
    /// Most bits of a VM's addresses.
    pub ipa_bits: u64,
}

impl Places {
    /// All that the argument called `name` is to be. The first is what makes most sense.
    pub fn values(&self, name: &str) -> Vec<u64> {
        match name {
            "vm" => {
                let [own, attacked] = self.vms;
                vec![own, attacked, 0, MAX_VMS, MAX_VMS + 1, 1 << 16 | own, 1 << 32 | own, u64::MAX]
            }
            "vcpu" => vec![0, 1, MAX_VCPUS - 1, MAX_VCPUS, 1 << 16, 1 << 32, u64::MAX],
            "pa" | "mailbox" | "root" | "manifest" | "out" | "tag" | "data" => self.physical(),
            "gpa" => guest(),
            "pages" => vec![1, 0, 2, MAX_PAGES, MAX_PAGES + 1, WRAPS - 1, WRAPS, WRAPS + 1, u64::MAX],
            "size" => vec![PAGE, 0, 1, PAGE + 1, 1 << IPA_BITS, u64::MAX - PAGE + 1, u64::MAX],
            "kind" => vec![0, 1, 2, 1 << 32, u64::MAX],
            "ipa_bits" => {
                vec![IPA_BITS, 0, 31, 32, 39, 40, self.ipa_bits, self.ipa_bits + 1, 64, 1 << 32 | IPA_BITS, u64::MAX]
            }
            "image" => vec![0, 1, MAX_IMAGES - 1, MAX_IMAGES, 1 << 32, u64::MAX],
            "register" => {
                let around = [0, 30, 31, 40, 127, 128, 191, 192, 200, 208, 209, 211, 212, 255];
                around.into_iter().chain([256, 1 << 32, u64::MAX]).collect()
            }
            "runs" => vec![1, 0, 2, MAX_RUNS as u64, MAX_RUNS as u64 + 1, 1 << 32, u64::MAX],
            "run" => self.physical(),
            "flags" => vec![0, 1, 2, 1 << 63, u64::MAX],
            "phase" => vec![0, 1, 2, 1 << 32, u64::MAX],
            // Offsets, events, sequence numbers, values of registers.
            _ => vec![0, 1, 0x3c5, 0x3c9, 1 << 63, u64::MAX],
        }
    }

    /// Whether a page is one that calls may take.
    pub fn is_free(&self, page: u64) -> bool {
        (self.free..self.free + 2 * BLOCK).contains(&page) || self.of.contains(&page)
    }

    /// The argument that a call must not be served with, if it has one: `gicv` is the only window that may be mapped.
    pub fn wrong(&self, call: HostCall, arguments: &[u64; 5], gicv: u64) -> Option<&'static str> {
        let names = call.arguments().iter().copied();
        names.zip(arguments).find(|(name, value)| !self.allows(call, name, **value, gicv)).map(|(name, _)| name)
    }

    fn allows(&self, call: HostCall, name: &str, value: u64, gicv: u64) -> bool {
        let whole = value.is_multiple_of(PAGE);
        match name {
            "vm" => self.vms.contains(&value) && value != 0,
            "vcpu" => value < MAX_VCPUS,
            "pa" if call == HostCall::MapIo => value == gicv || value == gicv + PAGE,
            // Whoever a page is lent to, it is this host's.
            "pa" if call == HostCall::MapMemory => whole && (self.is_free(value) || self.lent.contains(&value)),
            "run" => self.is_free(value & !(PAGE - 1)) || self.lent.contains(&(value & !(PAGE - 1))),
            "runs" => (1..=MAX_RUNS as u64).contains(&value),
            "mailbox" | "out" | "tag" | "data" => whole && (self.is_free(value) || self.lent.contains(&value)),
            "manifest" => value == 0 || whole && (self.is_free(value) || self.lent.contains(&value)),
            "pa" | "root" => whole && self.is_free(value),
            "gpa" => whole && value < 1 << IPA_BITS,
            "pages" => value != 0,
            "kind" | "phase" => value < 2,
            "ipa_bits" => (32..=self.ipa_bits).contains(&value),
            "image" => value < MAX_IMAGES,
            "flags" => value < 2,
            _ => true,
        }
    }

    fn physical(&self) -> Vec<u64> {
        let mut list =
            vec![self.free, self.free + BLOCK, self.free + PAGE, self.free + 1, self.free + 2 * BLOCK - PAGE];
        list.extend(self.of);
        list.extend(&self.foreign);
        list.extend(&self.lent);
        list.extend(&self.forbidden);
        list.extend([0, self.end, 1 << 52 | self.free, 1 << 63 | self.free]);
        list.extend([u64::MAX - PAGE + 1, u64::MAX]);
        list
    }
}

fn guest() -> Vec<u64> {
    vec![
        RAM_BASE + 16 * PAGE,
        // Where the VM under test has memory, an image.
        RAM_BASE,
        RAM_BASE + BLOCK,
        RAM_BASE + 1,
        0,
        GICC_BASE,
        (1 << IPA_BITS) - PAGE,
        1 << IPA_BITS,
        1 << 39,
        1 << 48,
        WRAPS,
        u64::MAX - PAGE + 1,
        u64::MAX,
    ]
}

/// Arguments of `call`: every value of each with every value of each other, while the rest makes sense.
pub fn arguments(places: &Places, call: HostCall) -> Vec<[u64; 5]> {
    let values: Vec<Vec<u64>> = call.arguments().iter().map(|name| places.values(name)).collect();
    let mut usual = [0; 5];
    usual.iter_mut().zip(&values).for_each(|(argument, values)| *argument = values[0]);
    let mut list = vec![usual];
    for (n, ones) in values.iter().enumerate() {
        // Of a single argument each value; else pairs.
        let others = if values.len() == 1 { n..n + 1 } else { n + 1..values.len() };
        for m in others {
            for one in ones {
                for other in &values[m] {
                    let mut arguments = usual;
                    arguments[m] = *other;
                    arguments[n] = *one;
                    list.push(arguments);
                }
            }
        }
    }
    list.sort_unstable();
    list.dedup();
    list
}
