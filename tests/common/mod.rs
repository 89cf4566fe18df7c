//! What the tests of this directory share: random machines, and what is done to them.
#![forbid(unsafe_code)]
#![allow(dead_code, missing_docs)]

pub mod driver;
pub mod lives;
pub mod mediated;
pub mod snapshots;
pub mod vm_steps;
pub mod vms;

use corevisor::npt::Level;
use corevisor::spec::world::Layout;
use corevisor_evidence::Rng;

const PAGE: u64 = 4096;
const BLOCK: u64 = 1 << 21;
const GIB: u64 = 1 << 30;

/// A machine with random banks of RAM, windows and holes. `large` adds a bank of a whole GiB.
pub fn random_layout(rng: &mut Rng, large: bool) -> Layout {
    let ia_bits = rng.pick(&[36, 38, 39, 40, 41, 42, 43, 44, 46, 48]);
    let top = 1u64 << ia_bits;
    let mut regions = vec![];
    let mut at = rng.pick(&[0, 0, PAGE, 0x0800_0000, GIB - BLOCK, GIB]);
    let count = 3 + rng.below(4);
    let large_at = if large { rng.below(count) } else { count };
    for n in 0..count {
        let is_ram = n == large_at || rng.below(3) > 0;
        let size = if n == large_at {
            at = at.next_multiple_of(GIB);
            GIB + rng.below(3) * BLOCK
        } else {
            let pages = 1 + rng.below(700);
            let size = if rng.below(3) == 0 { (1 + rng.below(3)) * BLOCK } else { pages * PAGE };
            if !is_ram && rng.below(8) == 0 { 2 * GIB } else { size }
        };
        regions.push((at, size, is_ram));
        at += size;
        // A gap, often none: adjacent regions are the interesting ones.
        at += match rng.below(5) {
            0 => rng.below(5) * PAGE,
            1 => rng.below(3) * BLOCK,
            2 => GIB - at % GIB,
            _ => 0,
        };
    }
    // The bank that holds the pool for tables; sometimes at the very end of the address space.
    let pool_pages = 40 + rng.below(60);
    let size = pool_pages * PAGE + rng.below(30) * PAGE;
    let base = if rng.below(3) == 0 { top - size } else { at };
    assert!(base >= at && base + size <= top);
    regions.push((base, size, true));
    let pool = base + rng.below((size - pool_pages * PAGE) / PAGE + 1) * PAGE;
    let pool = if pool == 0 { pool + PAGE } else { pool };
    Layout { regions, pool, pool_pages: pool_pages - 1, ia_bits, cpus: 3, smmu: random_smmu(rng, large) }
}

/// A machine for VMs: some blocks of RAM, often with page 0, and a bank for pools and odd pages.
pub fn vm_layout(rng: &mut Rng) -> Layout {
    let ia_bits = rng.pick(&[36, 39, 40, 44, 48]);
    let mut regions = vec![];
    if rng.below(2) == 0 {
        regions.push((0, (1 + rng.below(3)) * PAGE, true));
    }
    regions.push((0x0900_0000, 2 * PAGE, false));
    regions.push((GIB, (2 + rng.below(3)) * BLOCK, true));
    let pool = 2 * GIB + rng.below(64) * PAGE;
    regions.push((2 * GIB, BLOCK + rng.below(40) * PAGE, true));
    Layout { regions, pool, pool_pages: 6 + rng.below(30), ia_bits, cpus: 2, smmu: random_smmu(rng, false) }
}

/// An SMMU that takes blocks, one that takes pages only, or none. A whole GiB by pages would take most of the time of all machines.
fn random_smmu(rng: &mut Rng, large: bool) -> Option<Level> {
    rng.pick(&[None, Some(Level::L2), if large { Some(Level::L2) } else { Some(Level::L3) }])
}

/// Addresses worth trying: ends of regions and blocks, and what is just outside of them.
pub fn interesting(layout: &Layout) -> Vec<u64> {
    let mut all = vec![0, PAGE, GIB, (1 << layout.ia_bits) - PAGE, 1 << layout.ia_bits, 1 << 47, (1 << 48) - PAGE];
    for &(base, size, _) in &layout.regions {
        let end = base + size;
        for near in [base, end, base.next_multiple_of(BLOCK), end & !(BLOCK - 1), base + size / 2] {
            all.extend([near.saturating_sub(PAGE), near, near + PAGE]);
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}
