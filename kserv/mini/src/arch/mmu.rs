//! The identity map, 39 bits: a gigabyte block where all is alike, else 2 MiB blocks. RAM is normal memory; what is no RAM is device
//! memory and never executes. What belongs to the core or to protected VMs is refused by the core's own tables, whatever stands here.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ops::Range;

use super::entry::{Abort, Odd, try_read};
use super::lpis::Frame;

const BLOCK_1G: u64 = 1 << 30;
const BLOCK_2M: u64 = 1 << 21;

/// Attribute 0: normal, write-back; 1: device, nGnRE. Arm ARM D24.2.107.
pub const MAIR: u64 = 0x04ff;
/// 39 bits from TTBR0, 4 KiB pages, write-back, inner shareable; TTBR1 off. IPS by the CPU. Arm ARM D24.2.189.
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// Block: valid, accessed, inner shareable, attribute 0.
pub const NORMAL_BLOCK: u64 = 1 | 1 << 10 | 3 << 8;
/// Block: valid, accessed, attribute 1, execute-never at both levels.
const DEVICE_BLOCK: u64 = 1 | 1 << 10 | 1 << 2 | 1 << 53 | 1 << 54;
const TABLE_DESC: u64 = 3;
/// Gigabytes that are partly RAM.
const MAX_LEVEL_2: usize = 32;

/// A translation table.
#[repr(C, align(4096))]
pub struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: written by the first CPU only, before the others start.
unsafe impl Sync for Table {}

/// The root.
pub static TABLE: Table = Table(UnsafeCell::new([0; 512]));
static LEVEL_2: [Table; MAX_LEVEL_2] = [const { Table(UnsafeCell::new([0; 512])) }; MAX_LEVEL_2];

unsafe extern "C" {
    fn switch_tables(root: u64);
}

/// Makes the map for this RAM and goes over to it. First CPU only, before the others start.
///
/// # Errors
/// A text if the RAM does not fit.
pub fn start(ram: &[Range<u64>]) -> Result<(), &'static str> {
    let mut used = 0;
    for gigabyte in 0..512 {
        let base = gigabyte * BLOCK_1G;
        let desc = if all_ram(ram, base, BLOCK_1G) {
            base | NORMAL_BLOCK
        } else if any_ram(ram, base, BLOCK_1G) {
            let table = LEVEL_2.get(used).ok_or("RAM is in too many pieces")?;
            used += 1;
            for n in 0..512 {
                let at = base + n * BLOCK_2M;
                let kind = if any_ram(ram, at, BLOCK_2M) { NORMAL_BLOCK } else { DEVICE_BLOCK };
                // SAFETY: the table is not in use yet, and no other CPU runs.
                unsafe { (*table.0.get())[n as usize] = at | kind };
            }
            table.0.get() as u64 | TABLE_DESC
        } else {
            base | DEVICE_BLOCK
        };
        // SAFETY: as above.
        unsafe { (*TABLE.0.get())[gigabyte as usize] = desc };
    }
    super::memory::clean(&raw const TABLE as u64, 4096);
    for table in &LEVEL_2 {
        super::memory::clean(core::ptr::from_ref(table) as u64, 4096);
    }
    // SAFETY: the tables map all that the early ones do, at the same addresses with the same attributes.
    unsafe { switch_tables(TABLE.0.get() as u64) };
    Ok(())
}

fn any_ram(ram: &[Range<u64>], base: u64, size: u64) -> bool {
    ram.iter().any(|bank| bank.start < base + size && base < bank.end)
}

fn all_ram(ram: &[Range<u64>], base: u64, size: u64) -> bool {
    ram.iter().any(|bank| bank.start <= base && base + size <= bank.end)
}

/// Opens the upper half of the addresses in TCR_EL1: 39 bits from TTBR1, as the lower half is.
const UPPER_HALF: u64 = 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
/// TCR_EL1.EPD1.
const NO_UPPER_HALF: u64 = 1 << 23;
/// Where the upper half begins.
const UPPER: u64 = 0xffff_ff80_0000_0000;

/// A descriptor of the first or second level that leads to the table at `pa`.
pub const fn table(pa: u64) -> u64 {
    pa | TABLE_DESC
}

/// What stands at `offset` of the addresses that the table at `root` translates, whatever that is.
///
/// # Errors
/// [`Abort`] if the access, or the walk, was refused.
pub fn try_through(root: u64, offset: u64) -> Result<u64, Abort> {
    through(root, || try_read(UPPER + offset))
}

/// An odd access to a register, by addresses at which the table at `root` has it as normal memory that executes: stage 1 refuses nothing then.
///
/// # Errors
/// [`Abort`] if the access, or the walk, was refused.
pub fn try_odd(root: u64, frame: Frame, register: u64, odd: Odd) -> Result<(), Abort> {
    let at = frame.at() + register;
    super::memory::copy_to(root + at / BLOCK_1G * 8, &(at & !(BLOCK_1G - 1) | NORMAL_BLOCK).to_le_bytes());
    super::memory::clean(root, 4096);
    // SAFETY: it is a register of the interrupt controller's that has nothing to do with memory, or is read-only (`Frame`).
    through(root, || unsafe { odd.attempt(UPPER + at) })
}

/// Does `act` while the table at `root` translates the upper half.
fn through<T>(root: u64, act: impl FnOnce() -> T) -> T {
    let tcr: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, tcr_el1", out(reg) tcr, options(nomem, nostack, preserves_flags)) };
    set_upper(root, tcr & !NO_UPPER_HALF | UPPER_HALF);
    let result = act();
    set_upper(0, tcr);
    result
}

/// Nothing of this program is in the upper half.
fn set_upper(root: u64, tcr: u64) {
    // SAFETY: what this program lives in is in the lower half, which stays as it is.
    unsafe {
        asm!(
            "msr tcr_el1, {closed}", "isb", "msr ttbr1_el1, {root}", "isb", "tlbi vmalle1", "dsb nsh", "msr tcr_el1, {tcr}", "isb",
            closed = in(reg) tcr | NO_UPPER_HALF, root = in(reg) root, tcr = in(reg) tcr, options(nostack)
        );
    }
}
