//! A vCPU's shadow context: the registers of a VM while it does not run, in memory that only the core reaches.
//!
//! It lives in one page of the VM's pool. A layer reads and writes a register of it by name: one of a vCPU that does not run through
//! `Machine::get_shadow_ctxt` and `Machine::set_shadow_ctxt`, those of one that does in the [`Context`], which whoever runs it has taken for
//! himself (`Machine::take_shadow_ctxt`). The world switch fills and empties it whole. K §3.1 (there: numbers). The bank of
//! EL1 registers is one structure, so that later kinds of contexts can keep it elsewhere.
#![forbid(unsafe_code)]

use super::addr::Pa;
use super::regs::El1Reg;

/// Where a vCPU's shadow context is: a page that the core owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shadow(Pa);

impl Shadow {
    /// The context in the page at `page`.
    pub const fn new(page: Pa) -> Self {
        Self(page)
    }

    /// Its page.
    pub const fn page(self) -> Pa {
        self.0
    }
}

macro_rules! el1_registers {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// EL1 and EL0 registers that the world switch saves and restores for host and VMs. The order is the interface's
        /// (`Register::El1`): append only.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[repr(usize)]
        pub enum BankReg {
            $($(#[doc = $doc])* $name,)*
        }

        impl BankReg {
            /// Every register, in order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

el1_registers! {
    /// SP_EL0.
    SpEl0,
    /// SP_EL1.
    SpEl1,
    /// ELR_EL1.
    ElrEl1,
    /// SPSR_EL1.
    SpsrEl1,
    /// What the VM reads as MPIDR_EL1 (VMPIDR_EL2).
    Mpidr,
    /// CSSELR_EL1.
    Csselr,
    /// SCTLR_EL1.
    Sctlr,
    /// ACTLR_EL1.
    Actlr,
    /// CPACR_EL1.
    Cpacr,
    /// TTBR0_EL1.
    Ttbr0,
    /// TTBR1_EL1.
    Ttbr1,
    /// TCR_EL1.
    Tcr,
    /// ESR_EL1.
    Esr,
    /// AFSR0_EL1.
    Afsr0,
    /// AFSR1_EL1.
    Afsr1,
    /// FAR_EL1.
    Far,
    /// MAIR_EL1.
    Mair,
    /// VBAR_EL1.
    Vbar,
    /// CONTEXTIDR_EL1.
    Contextidr,
    /// TPIDR_EL0.
    TpidrEl0,
    /// TPIDRRO_EL0.
    TpidrroEl0,
    /// TPIDR_EL1.
    TpidrEl1,
    /// AMAIR_EL1.
    Amair,
    /// CNTKCTL_EL1.
    Cntkctl,
    /// PAR_EL1.
    Par,
    /// MDSCR_EL1.
    Mdscr,
    /// MDCCINT_EL1.
    Mdccint,
    /// DISR_EL1, where the CPU has FEAT_RAS.
    Disr,
    /// Pointer authentication key A for instructions, low half; this and the next nine only where the CPU has FEAT_PAuth.
    ApiaKeyLo,
    /// High half.
    ApiaKeyHi,
    /// Key B for instructions, low half.
    ApibKeyLo,
    /// High half.
    ApibKeyHi,
    /// Key A for data, low half.
    ApdaKeyLo,
    /// High half.
    ApdaKeyHi,
    /// Key B for data, low half.
    ApdbKeyLo,
    /// High half.
    ApdbKeyHi,
    /// Generic key, low half.
    ApgaKeyLo,
    /// High half.
    ApgaKeyHi,
    /// CNTV_CTL_EL0.
    CntvCtl,
    /// CNTV_CVAL_EL0.
    CntvCval,
}

/// Where a context keeps what exception entry reads and writes.
impl From<El1Reg> for BankReg {
    fn from(reg: El1Reg) -> Self {
        match reg {
            El1Reg::Elr => Self::ElrEl1,
            El1Reg::Spsr => Self::SpsrEl1,
            El1Reg::Esr => Self::Esr,
            El1Reg::Far => Self::Far,
            El1Reg::Sctlr => Self::Sctlr,
            El1Reg::Vbar => Self::Vbar,
        }
    }
}

/// Number of [`BankReg`]s.
pub const BANK_REGS: usize = BankReg::ALL.len();
/// Bit of `Dirty`: the next entry goes on behind the instruction. Bits 0 to 30: it takes x0 to x30 from the host. K: DIRTY_PC.
pub const DIRTY_PC: u64 = 1 << 32;
/// Words of the GIC's virtual CPU interface that are a vCPU's: list registers and what goes with them.
pub const VGIC_WORDS: usize = 16 + 11;

/// A register of a shadow context by name. K §3.1: `get_shadow_ctxt`'s index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ShadowReg {
    /// x0 to x30.
    X(u8),
    /// Program counter: ELR_EL2.
    Pc,
    /// Processor state: SPSR_EL2.
    Pstate,
    /// Why the vCPU left last: ESR_EL2.
    EsrEl2,
    /// FAR_EL2.
    FarEl2,
    /// HPFAR_EL2, as the register holds it.
    HpfarEl2,
    /// What the next entry takes from the host ([`DIRTY_PC`]). K: DIRTY.
    Dirty,
    /// K: FLAGS.
    Flags,
    /// CNTVOFF_EL2.
    Cntvoff,
    /// Number of exits.
    Exits,
    /// What the core may deliver by itself in this run (the interface's `Mailbox::direct`).
    Direct,
    /// Which list registers are in use, and whose ([`LISTS`](super::regs::LISTS)).
    Lists,
    /// EL1 and EL0.
    Bank(BankReg),
    /// Halves of q0 to q31: 2 * n is the low half of q`n`.
    Q(u8),
    /// FPSR.
    Fpsr,
    /// FPCR.
    Fpcr,
    /// List registers 0 to 15, then the control registers of the virtual CPU interface ([`VgicWord`](super::world::VgicWord)).
    Vgic(u8),
}

/// A context as the page holds it; the offsets in boot/switch.S come from this type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct Context {
    /// x0 to x30, and one word of padding.
    pub x: [u64; 32],
    /// ELR_EL2.
    pub pc: u64,
    /// SPSR_EL2.
    pub pstate: u64,
    /// ESR_EL2, FAR_EL2, HPFAR_EL2 of the last exit.
    pub syndrome: [u64; 3],
    /// Dirty, Flags, Cntvoff, Exits, Direct, Lists.
    pub control: [u64; 6],
    /// By [`BankReg`].
    pub bank: [u64; BANK_REGS],
    /// q0 to q31, low half first.
    pub q: [u64; 64],
    /// FPSR, FPCR.
    pub fp_control: [u64; 2],
    /// List registers and control registers of the virtual CPU interface.
    pub vgic: [u64; VGIC_WORDS],
}

const _: () = assert!(size_of::<Context>() <= 4096);

/// The place of a register, by `get` or by `get_mut`. With a register that the compiler knows it is a field.
macro_rules! place {
    ($context:ident, $reg:ident, $get:ident, $($borrow:tt)+) => {
        match $reg {
            ShadowReg::X(n) => $context.x.$get(usize::from(n)).filter(|_| n < 31),
            ShadowReg::Pc => Some($($borrow)+ $context.pc),
            ShadowReg::Pstate => Some($($borrow)+ $context.pstate),
            ShadowReg::EsrEl2 => $context.syndrome.$get(0),
            ShadowReg::FarEl2 => $context.syndrome.$get(1),
            ShadowReg::HpfarEl2 => $context.syndrome.$get(2),
            ShadowReg::Dirty => $context.control.$get(0),
            ShadowReg::Flags => $context.control.$get(1),
            ShadowReg::Cntvoff => $context.control.$get(2),
            ShadowReg::Exits => $context.control.$get(3),
            ShadowReg::Direct => $context.control.$get(4),
            ShadowReg::Lists => $context.control.$get(5),
            ShadowReg::Bank(reg) => $context.bank.$get(reg as usize),
            ShadowReg::Q(n) => $context.q.$get(usize::from(n)),
            ShadowReg::Fpsr => $context.fp_control.$get(0),
            ShadowReg::Fpcr => $context.fp_control.$get(1),
            ShadowReg::Vgic(n) => $context.vgic.$get(usize::from(n)),
        }
    };
}

impl Context {
    /// All zero.
    pub const EMPTY: Self = Self {
        x: [0; 32],
        pc: 0,
        pstate: 0,
        syndrome: [0; 3],
        control: [0; 6],
        bank: [0; BANK_REGS],
        q: [0; 64],
        fp_control: [0; 2],
        vgic: [0; VGIC_WORDS],
    };

    /// The register `reg`; one that no context has (x31 and on) reads as zero.
    #[inline(always)]
    pub fn get(&self, reg: ShadowReg) -> u64 {
        place!(self, reg, get, &).copied().unwrap_or(0)
    }

    /// Sets the register `reg`; one that no context has is left out.
    #[inline(always)]
    pub fn set(&mut self, reg: ShadowReg, value: u64) {
        if let Some(place) = place!(self, reg, get_mut, &mut) {
            *place = value;
        }
    }
}
