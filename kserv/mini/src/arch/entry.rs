//! From `entry.S` to Rust: the names and constants that it uses, what ends in an exception, and accesses that may fail.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use super::mmu;

/// Most CPUs: as many as the core drives.
pub const MAX_CPUS: usize = 64;
const STACK_SIZE: usize = 128 * 1024;

/// Memory that assembly uses.
#[repr(C, align(4096))]
struct Raw<T>(UnsafeCell<T>);

// SAFETY: each part is used by one CPU only: its stack, or the early table before Rust runs.
unsafe impl<T> Sync for Raw<T> {}

static STACKS: Raw<[[u8; STACK_SIZE]; MAX_CPUS]> = Raw(UnsafeCell::new([[0; STACK_SIZE]; MAX_CPUS]));
static EARLY_TABLE: Raw<[u64; 512]> = Raw(UnsafeCell::new([0; 512]));

global_asm!(
    include_str!("entry.S"),
    include_str!("../../../../boot/relocate.S"),
    MAIR = const mmu::MAIR,
    TCR = const mmu::TCR,
    SCTLR_ON = const 0x30d0_0800_u64 | 1 << 12 | 1 << 3 | 1 << 2 | 1,
    SCTLR_OFF = const 0x30d0_0800_u64,
    NORMAL_BLOCK = const mmu::NORMAL_BLOCK,
    STACKS = sym STACKS,
    STACK_SIZE = const STACK_SIZE,
    EARLY_TABLE = sym EARLY_TABLE,
    TABLE = sym mmu::TABLE,
    primary_main = sym primary_main,
    secondary_main = sym secondary_main,
    unexpected = sym unexpected,
);

unsafe extern "C" {
    fn guarded_load(address: u64, word: *mut u64) -> u64;
    fn guarded_store(address: u64, word: u64) -> u64;
    fn guarded_zero(address: u64) -> u64;
    fn guarded_exclusive(address: u64, word: *mut u64) -> u64;
    fn guarded_atomic(address: u64, word: *mut u64) -> u64;
    fn guarded_call(address: u64, word: *mut u64) -> u64;
    fn guarded_load_byte(address: u64, word: *mut u64) -> u64;
    fn guarded_store_byte(address: u64, word: u64) -> u64;
    fn guarded_load_half(address: u64, word: *mut u64) -> u64;
    fn guarded_load_pair(address: u64, word: *mut u64) -> u64;
    fn guarded_store_pair(address: u64, word: u64) -> u64;
    fn guarded_load_step(address: u64, word: *mut u64) -> u64;
    static _start: u8;
    static __image_end: u8;
}

extern "C" fn primary_main(device_tree: u64, _base: u64) -> ! {
    super::heap::start();
    crate::start(device_tree)
}

extern "C" fn secondary_main() -> ! {
    crate::start_secondary()
}

/// An exception that nothing here expects: the end.
extern "C" fn unexpected(kind: u64, esr: u64, elr: u64, far: u64) -> ! {
    crate::fail(format_args!(
        "exception (vector {kind}) at {:#x}: ESR {esr:#x}, FAR {far:#x}",
        elr.wrapping_sub(image().start)
    ))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::fail(format_args!("{info}"))
}

/// Where this program is.
pub fn image() -> core::ops::Range<u64> {
    &raw const _start as u64..&raw const __image_end as u64
}

/// An access that ended in an exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// ESR_EL1.
    pub esr: u64,
}

impl Abort {
    /// Whether it is how the core refuses an access of EL1: of data an alignment fault, of an instruction or a table walk a synchronous external abort. Arm ARM D24.2.39,
    /// DFSC and IFSC. This host's own accesses are aligned.
    pub const fn is_refusal(self) -> bool {
        matches!((self.esr >> 26, self.esr & 0x3f), (0x21 | 0x25, 0x10) | (0x25, 0x21))
    }
}

/// A way to reach a word of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Load,
    /// A store of this word.
    Store(u64),
    /// LDXR and STXR: adds 1.
    Exclusive,
    /// LDADD: adds 1.
    Atomic,
    /// DC ZVA.
    Zero,
    /// A call of the code there: [`RETURN`], or one instruction and RETURN. The word is its x2.
    Execute,
}

/// RET.
pub const RETURN: u32 = 0xd65f_03c0;

impl Access {
    /// Every way that this CPU has; stores are of `word`.
    pub fn all(word: u64) -> impl Iterator<Item = Self> {
        let isar0: u64;
        // SAFETY: reads a register.
        unsafe {
            core::arch::asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0, options(nomem, nostack, preserves_flags))
        };
        let has_atomics = isar0 >> 20 & 0xf >= 2;
        [Self::Load, Self::Store(word), Self::Exclusive, Self::Execute, Self::Zero, Self::Atomic]
            .into_iter()
            .filter(move |access| has_atomics || *access != Self::Atomic)
    }
}

/// The word at a physical address, whatever may happen.
///
/// # Errors
/// [`Abort`] if the access was refused.
pub fn try_read(pa: u64) -> Result<u64, Abort> {
    let mut word = 0;
    // SAFETY: a failing access is caught; one that succeeds changes nothing but `word`.
    match unsafe { guarded_load(pa & !7, &raw mut word) } {
        0 => Ok(word),
        esr => Err(Abort { esr }),
    }
}

/// Writes the word at a physical address of free RAM, whatever may happen.
///
/// # Errors
/// [`Abort`] if the access was refused.
pub fn try_write(pa: u64, word: u64) -> Result<(), Abort> {
    try_access(Access::Store(word), pa).map(|_| ())
}

/// Reaches a physical address of free RAM in one of the ways there are: the word that was there, if this tells; else 0.
///
/// # Errors
/// [`Abort`] if the access was refused.
pub fn try_access(access: Access, pa: u64) -> Result<u64, Abort> {
    super::memory::assert_free(pa, 8);
    let (pa, mut word) = (pa & !7, 0);
    // SAFETY: no Rust object lives in free RAM; a failing access is caught. What is executed is RET, or MRS to x2 and RET: nothing else is ever
    // put at where `Execute` is tried, and what is not this program's cannot be reached.
    let esr = unsafe {
        match access {
            Access::Load => guarded_load(pa, &raw mut word),
            Access::Store(word) => guarded_store(pa, word),
            Access::Exclusive => guarded_exclusive(pa, &raw mut word),
            Access::Atomic => guarded_atomic(pa, &raw mut word),
            Access::Zero => guarded_zero(pa),
            Access::Execute => guarded_call(pa, &raw mut word),
        }
    };
    if esr == 0 { Ok(word) } else { Err(Abort { esr }) }
}

/// A way to reach a register that no register is reached by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Odd {
    /// LDRB.
    LoadByte,
    /// STRB.
    StoreByte,
    /// LDRH.
    LoadHalf,
    /// LDP.
    LoadPair,
    /// STP.
    StorePair,
    /// LDR that moves its base on.
    LoadStep,
    /// A doubleword that begins in the middle of a word.
    LoadUnaligned,
    /// The same.
    StoreUnaligned,
    /// LDXR and STXR.
    Exclusive,
    /// DC ZVA.
    Zero,
    /// A fetch.
    Execute,
}

impl Odd {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::LoadByte,
        Self::StoreByte,
        Self::LoadHalf,
        Self::LoadPair,
        Self::StorePair,
        Self::LoadStep,
        Self::LoadUnaligned,
        Self::StoreUnaligned,
        Self::Exclusive,
        Self::Zero,
        Self::Execute,
    ];

    /// # Safety
    /// At `address` there is a device's register whose change, to 0 or by 1, harms nothing of this program's; there is no code.
    pub(super) unsafe fn attempt(self, address: u64) -> Result<(), Abort> {
        let mut found = 0;
        let word = &raw mut found;
        // SAFETY: a failing access is caught; for one that succeeds the caller vouches.
        let esr = unsafe {
            match self {
                Self::LoadByte => guarded_load_byte(address, word),
                Self::StoreByte => guarded_store_byte(address, 0),
                Self::LoadHalf => guarded_load_half(address, word),
                Self::LoadPair => guarded_load_pair(address, word),
                Self::StorePair => guarded_store_pair(address, 0),
                Self::LoadStep => guarded_load_step(address, word),
                Self::LoadUnaligned => guarded_load(address + 2, word),
                Self::StoreUnaligned => guarded_store(address + 2, 0),
                Self::Exclusive => guarded_exclusive(address, word),
                Self::Zero => guarded_zero(address),
                Self::Execute => guarded_call(address, word),
            }
        };
        if esr == 0 { Ok(()) } else { Err(Abort { esr }) }
    }
}
