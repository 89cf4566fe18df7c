//! ONE_REG: which registers user space sees, and what stands behind each.
//!
//! | id                    | behind it                                                                                 |
//! |-----------------------|-------------------------------------------------------------------------------------------|
//! | core registers        | registers of the core, by number ([`corevisor_interface::mailbox::Register`]); SPSR of AArch32 modes: kept here |
//! | system registers of EL1 | registers of the core                                                                   |
//! | ID registers          | what the VM reads, fixed: a write of the same value is taken, any other is an error       |
//! | virtual timer         | registers of the core, noted here too; its count is the offset of the whole VM            |
//! | physical timer        | here: it is emulated                                                                      |
//! | firmware: PSCI version | 1.1, fixed                                                                               |
//!
//! Where a core register is at the moment (in the core, or in the caller's memory before the first run) is the caller's business: it brings the words and
//! takes them back. Sources: Linux, arch/arm64/include/uapi/asm/kvm.h and Documentation/virt/kvm/api.rst (KVM_GET_REG_LIST); Arm ARM D24.2.
#![forbid(unsafe_code)]

use corevisor_interface::id_registers;
use corevisor_interface::mailbox::{Register, START_PSTATE};

use super::{Errno, Kvm};
use crate::layout::affinity;
use crate::sysreg::Register as Sysreg;
use crate::vtimer::{ENABLE, IMASK, ISTATUS};

/// KVM_REG_ARM64.
const ARM64: u64 = 0x6000_0000_0000_0000;
const SIZE_U32: u64 = 2 << 52;
const SIZE_U64: u64 = 3 << 52;
const SIZE_U128: u64 = 4 << 52;
const GROUP_CORE: u64 = 0x10 << 16;
const GROUP_SYSREG: u64 = 0x13 << 16;
const GROUP_FIRMWARE: u64 = 0x14 << 16;

/// Position of a field of `struct kvm_regs`, in words of 32 bits.
mod core_reg {
    pub const SP: u64 = 62;
    pub const PC: u64 = 64;
    pub const PSTATE: u64 = 66;
    pub const SP_EL1: u64 = 68;
    pub const ELR_EL1: u64 = 70;
    /// SPSR_EL1, then four of AArch32 modes.
    pub const SPSR: u64 = 72;
    pub const VREGS: u64 = 84;
    pub const FPSR: u64 = 212;
    pub const FPCR: u64 = 213;
}

const fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    ARM64 | SIZE_U64 | GROUP_SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

const fn core_id(size: u64, at: u64) -> u64 {
    ARM64 | size | GROUP_CORE | at
}

const MIDR: u64 = sysreg(3, 0, 0, 0, 0);
const MPIDR: u64 = sysreg(3, 0, 0, 0, 5);
const REVIDR: u64 = sysreg(3, 0, 0, 0, 6);
const CLIDR: u64 = sysreg(3, 1, 0, 0, 1);
const AIDR: u64 = sysreg(3, 1, 0, 0, 7);
const CTR: u64 = sysreg(3, 3, 0, 0, 1);
/// ID registers: CRm 1 to 7, op2 0 to 7.
const ID_FIRST: u64 = sysreg(3, 0, 0, 1, 0);
const ID_COUNT: u64 = 7 * 8;
/// The names of the timers' registers as KVM has them: CVAL and CNT of the virtual timer are swapped, and it stays so.
const TIMER_CTL: u64 = sysreg(3, 3, 14, 3, 1);
const TIMER_CNT: u64 = sysreg(3, 3, 14, 3, 2);
const TIMER_CVAL: u64 = sysreg(3, 3, 14, 0, 2);
const PTIMER_CTL: u64 = sysreg(3, 3, 14, 2, 1);
const PTIMER_CVAL: u64 = sysreg(3, 3, 14, 2, 2);
/// KVM_REG_ARM_PSCI_VERSION.
const PSCI_VERSION: u64 = ARM64 | SIZE_U64 | GROUP_FIRMWARE;
const PSCI_1_1: u64 = 0x1_0001;

/// What is fixed for the VM, and model-held registers, apart from the ID registers.
const OTHERS: [u64; 12] =
    [MIDR, MPIDR, REVIDR, CLIDR, AIDR, CTR, TIMER_CTL, TIMER_CNT, TIMER_CVAL, PTIMER_CTL, PTIMER_CVAL, PSCI_VERSION];

/// The core's EL1 registers in its order (`abstract_machine::shadow::BankReg`), with the name that ONE_REG has for each; 0: none, or another one
/// stands for it.
pub const EL1: [(&str, u64); 40] = [
    ("SpEl0", 0),
    ("SpEl1", 0),
    ("ElrEl1", 0),
    ("SpsrEl1", 0),
    ("Mpidr", 0),
    ("Csselr", sysreg(3, 2, 0, 0, 0)),
    ("Sctlr", sysreg(3, 0, 1, 0, 0)),
    ("Actlr", sysreg(3, 0, 1, 0, 1)),
    ("Cpacr", sysreg(3, 0, 1, 0, 2)),
    ("Ttbr0", sysreg(3, 0, 2, 0, 0)),
    ("Ttbr1", sysreg(3, 0, 2, 0, 1)),
    ("Tcr", sysreg(3, 0, 2, 0, 2)),
    ("Esr", sysreg(3, 0, 5, 2, 0)),
    ("Afsr0", sysreg(3, 0, 5, 1, 0)),
    ("Afsr1", sysreg(3, 0, 5, 1, 1)),
    ("Far", sysreg(3, 0, 6, 0, 0)),
    ("Mair", sysreg(3, 0, 10, 2, 0)),
    ("Vbar", sysreg(3, 0, 12, 0, 0)),
    ("Contextidr", sysreg(3, 0, 13, 0, 1)),
    ("TpidrEl0", sysreg(3, 3, 13, 0, 2)),
    ("TpidrroEl0", sysreg(3, 3, 13, 0, 3)),
    ("TpidrEl1", sysreg(3, 0, 13, 0, 4)),
    ("Amair", sysreg(3, 0, 10, 3, 0)),
    ("Cntkctl", sysreg(3, 0, 14, 1, 0)),
    ("Par", sysreg(3, 0, 7, 4, 0)),
    ("Mdscr", sysreg(2, 0, 0, 2, 2)),
    ("Mdccint", sysreg(2, 0, 0, 2, 0)),
    // Without FEAT_RAS there is none, and no VM has that.
    ("Disr", 0),
    ("ApiaKeyLo", sysreg(3, 0, 2, 1, 0)),
    ("ApiaKeyHi", sysreg(3, 0, 2, 1, 1)),
    ("ApibKeyLo", sysreg(3, 0, 2, 1, 2)),
    ("ApibKeyHi", sysreg(3, 0, 2, 1, 3)),
    ("ApdaKeyLo", sysreg(3, 0, 2, 2, 0)),
    ("ApdaKeyHi", sysreg(3, 0, 2, 2, 1)),
    ("ApdbKeyLo", sysreg(3, 0, 2, 2, 2)),
    ("ApdbKeyHi", sysreg(3, 0, 2, 2, 3)),
    ("ApgaKeyLo", sysreg(3, 0, 2, 3, 0)),
    ("ApgaKeyHi", sysreg(3, 0, 2, 3, 1)),
    ("CntvCtl", 0),
    ("CntvCval", 0),
];

const EL1_FIRST: u32 = Register::El1 as u32;
const ELR_EL1: u32 = EL1_FIRST + 2;
const SPSR_EL1: u32 = EL1_FIRST + 3;
const EL1_MPIDR: u32 = EL1_FIRST + 4;
const EL1_SCTLR: u32 = EL1_FIRST + 6;
const FIRST_KEY: usize = 28;
const CNTV_CTL: u32 = EL1_FIRST + 38;
const CNTV_CVAL: u32 = EL1_FIRST + 39;
const Q0: u32 = Register::Q0 as u32;
const FPSR: u32 = Register::Fpsr as u32;
const FPCR: u32 = Register::Fpcr as u32;
/// The virtual CPU interface: VMCR and eight words of active priorities.
pub const VMCR: u32 = Register::Vmcr as u32;
/// First word of active priorities; group 1 begins four later.
pub const ACTIVE_PRIORITIES: u32 = Register::Ap0r as u32;
const LAST: u32 = ACTIVE_PRIORITIES + 7;

/// SCTLR_EL1 of a vCPU that starts, as the core has it.
const SCTLR_RESET: u64 = 0x30d0_0800;
/// MPIDR_EL1: bit 31 is RES1.
const MPIDR_RES1: u64 = 1 << 31;
/// N Z C V, TCO DIT UAO PAN, ALLINT, SSBS, BTYPE, D A I F, M[3:0]: what the core takes of a processor state.
const PSTATE_BITS: u64 = 0xf << 28 | 0xf << 22 | 0x3 << 12 | 0x3 << 10 | 0xf << 6 | 0xf;
/// EL0t, EL1t, EL1h.
const PSTATE_MODES: [u64; 3] = [0, 4, 5];
/// CRm and op2 of the ID registers that [`super::Machine::id`] holds, in its order.
const IDS: [(u8, u8); 9] = [(4, 0), (4, 1), (5, 0), (6, 0), (6, 1), (6, 2), (7, 0), (7, 1), (7, 2)];

/// What stands behind a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behind {
    /// A core register, whole.
    Core(u32),
    /// The lower half of a core register.
    Core32(u32),
    /// Two core registers.
    Core128(u32),
    Pstate,
    /// Nobody changes it.
    Fixed(u64),
    /// Zero, whatever is written: what AArch32 is like, which no VM has. KVM has them so, and old VMMs write them.
    Nothing,
    Timer(Timer),
    BankedSpsr(usize),
    /// A register of the interrupt controller, in module `gic_registers`.
    Gic(super::gic_registers::GicRegister),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Timer {
    VirtualCtl,
    VirtualCval,
    VirtualCount,
    PhysicalCtl,
    PhysicalCval,
}

/// A register that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub(super) behind: Behind,
    /// Whose.
    pub vcpu: usize,
}

impl Found {
    /// The first core register that it is made of, and how many.
    pub const fn core(&self) -> Option<(u32, u32)> {
        match self.behind {
            Behind::Core(n) | Behind::Core32(n) => Some((n, 1)),
            Behind::Core128(n) => Some((n, 2)),
            Behind::Pstate => Some((Register::Pstate as u32, 1)),
            Behind::Timer(Timer::VirtualCtl) => Some((CNTV_CTL, 1)),
            Behind::Timer(Timer::VirtualCval) => Some((CNTV_CVAL, 1)),
            Behind::Gic(register) => match register.core() {
                Some(n) => Some((n, 1)),
                None => None,
            },
            _ => None,
        }
    }

    /// Bytes in user space.
    pub const fn size(&self) -> u32 {
        match self.behind {
            Behind::Core32(_) => 4,
            Behind::Core128(_) => 16,
            Behind::Gic(register) => register.size(),
            _ => 8,
        }
    }
}

/// Whether the core has a register of this number.
pub const fn core_register_exists(n: u32) -> bool {
    matches!(n, 0..=34 | EL1_FIRST..=CNTV_CVAL | Q0..=FPCR | VMCR..=LAST)
}

/// What it holds in a vCPU that never ran.
pub fn reset_value(vcpu: usize, n: u32) -> u64 {
    match n {
        _ if n == Register::Pstate as u32 => START_PSTATE,
        EL1_MPIDR => MPIDR_RES1 | affinity(vcpu),
        EL1_SCTLR => SCTLR_RESET,
        _ => 0,
    }
}

/// A register of `struct kvm_regs` at this place of the list.
const fn listed_core(index: u64) -> u64 {
    match index {
        0..=30 => core_id(SIZE_U64, 2 * index),
        31 => core_id(SIZE_U64, core_reg::SP),
        32 => core_id(SIZE_U64, core_reg::PC),
        33 => core_id(SIZE_U64, core_reg::PSTATE),
        34 => core_id(SIZE_U64, core_reg::SP_EL1),
        35 => core_id(SIZE_U64, core_reg::ELR_EL1),
        36..=40 => core_id(SIZE_U64, core_reg::SPSR + 2 * (index - 36)),
        41..=72 => core_id(SIZE_U128, core_reg::VREGS + 4 * (index - 41)),
        73 => core_id(SIZE_U32, core_reg::FPSR),
        _ => core_id(SIZE_U32, core_reg::FPCR),
    }
}
const CORE_COUNT: u64 = 75;

fn core_behind(id: u64) -> Option<Behind> {
    let at = id & 0xffff;
    let n = at as u32;
    let behind = match at {
        0..62 if at.is_multiple_of(2) => Behind::Core(n / 2),
        core_reg::SP => Behind::Core(Register::SpEl0 as u32),
        core_reg::PC => Behind::Core(Register::Pc as u32),
        core_reg::PSTATE => Behind::Pstate,
        core_reg::SP_EL1 => Behind::Core(Register::SpEl1 as u32),
        core_reg::ELR_EL1 => Behind::Core(ELR_EL1),
        core_reg::SPSR => Behind::Core(SPSR_EL1),
        74 | 76 | 78 | 80 => Behind::BankedSpsr((n as usize - 74) / 2),
        core_reg::VREGS..core_reg::FPSR if at.is_multiple_of(4) => {
            Behind::Core128(Q0 + (n - core_reg::VREGS as u32) / 2)
        }
        core_reg::FPSR => Behind::Core32(FPSR),
        core_reg::FPCR => Behind::Core32(FPCR),
        _ => return None,
    };
    let size = match behind {
        Behind::Core32(_) => SIZE_U32,
        Behind::Core128(_) => SIZE_U128,
        _ => SIZE_U64,
    };
    (id == core_id(size, at)).then_some(behind)
}

impl Kvm {
    /// The system registers of EL1 that are listed: with the keys of pointer authentication where the VM has it.
    fn listed_el1(&self) -> impl Iterator<Item = u64> {
        let count = if self.has_pointer_authentication() { EL1.len() } else { FIRST_KEY };
        EL1.into_iter().take(count).map(|(_, id)| id).filter(|id| *id != 0)
    }

    pub(super) fn has_pointer_authentication(&self) -> bool {
        // APA, API, GPA, GPI of ISAR1; GPA3, APA3 of ISAR2.
        self.id_register(6, 1) & 0xff00_0ff0 != 0 || self.id_register(6, 2) & 0xff00 != 0
    }

    fn id_register(&self, crm: u8, op2: u8) -> u64 {
        let raw = IDS.iter().position(|id| *id == (crm, op2)).map_or(0, |n| self.machine.id[n]);
        id_registers::visible(crm, op2, raw, self.machine.gic == 3)
    }

    /// How many registers KVM_GET_REG_LIST has.
    pub fn register_count(&self) -> usize {
        self.listed_el1().count() + CORE_COUNT as usize + OTHERS.len() + ID_COUNT as usize
    }

    /// The id at this place of the list.
    pub fn register_id(&self, index: usize) -> Option<u64> {
        let at = index as u64;
        if at < CORE_COUNT {
            return Some(listed_core(at));
        }
        if at < CORE_COUNT + ID_COUNT {
            return Some(ID_FIRST + (at - CORE_COUNT));
        }
        let index = index - (CORE_COUNT + ID_COUNT) as usize;
        OTHERS.get(index).copied().or_else(|| self.listed_el1().nth(index - OTHERS.len()))
    }

    /// The register with this id.
    ///
    /// # Errors
    /// [`Errno::NoEntry`] for an id that is not in the list.
    pub fn find_register(&self, vcpu: usize, id: u64) -> Result<Found, Errno> {
        let behind = match id {
            MIDR => Behind::Fixed(self.machine.midr),
            MPIDR => Behind::Fixed(MPIDR_RES1 | affinity(vcpu)),
            REVIDR => Behind::Fixed(self.machine.revidr),
            CLIDR => Behind::Fixed(self.machine.clidr),
            AIDR => Behind::Fixed(self.machine.aidr),
            CTR => Behind::Fixed(self.machine.ctr),
            PSCI_VERSION => Behind::Fixed(PSCI_1_1),
            TIMER_CTL => Behind::Timer(Timer::VirtualCtl),
            TIMER_CVAL => Behind::Timer(Timer::VirtualCval),
            TIMER_CNT => Behind::Timer(Timer::VirtualCount),
            PTIMER_CTL => Behind::Timer(Timer::PhysicalCtl),
            PTIMER_CVAL => Behind::Timer(Timer::PhysicalCval),
            _ if (ID_FIRST..ID_FIRST + ID_COUNT).contains(&id) => match ((id >> 3 & 7) as u8, (id & 7) as u8) {
                (1, 0..=2 | 4..=7) | (2, _) | (3, 0..=2 | 4 | 6) => Behind::Nothing,
                (crm, op2) => Behind::Fixed(self.id_register(crm, op2)),
            },
            _ if id & 0xfff_0000 == GROUP_CORE => core_behind(id).ok_or(Errno::NoEntry)?,
            _ => {
                let n = EL1.iter().position(|(_, other)| *other == id && id != 0).ok_or(Errno::NoEntry)?;
                if n >= FIRST_KEY && !self.has_pointer_authentication() {
                    return Err(Errno::NoEntry);
                }
                Behind::Core(EL1_FIRST + n as u32)
            }
        };
        let there = self.vcpus.get(vcpu).is_some_and(|vcpu| vcpu.created);
        if there { Ok(Found { behind, vcpu }) } else { Err(Errno::NoEntry) }
    }

    /// What user space sees of a register whose core registers hold `core`.
    ///
    /// # Errors
    /// Those of registers of the interrupt controller.
    pub fn get_register(&mut self, found: &Found, now: u64, core: [u64; 2]) -> Result<[u64; 2], Errno> {
        let one = self.created(found.vcpu)?;
        Ok(match found.behind {
            Behind::Core(_) | Behind::Pstate => [core[0], 0],
            Behind::Core32(_) => [core[0] & u64::from(u32::MAX), 0],
            Behind::Core128(_) => core,
            Behind::Fixed(value) => [value, 0],
            Behind::Nothing => [0; 2],
            Behind::BankedSpsr(n) => [one.banked_spsr.get(n).copied().unwrap_or(0), 0],
            Behind::Timer(timer) => {
                let (_, cval) = one.passage.virtual_timer.registers();
                let physical_timer = one.passage.physical_timer;
                let value = match timer {
                    Timer::VirtualCtl => {
                        let met = core[0] & ENABLE != 0 && cval <= now.wrapping_sub(self.cntvoff);
                        core[0] & (ENABLE | IMASK) | if met { ISTATUS } else { 0 }
                    }
                    Timer::VirtualCval => core[0],
                    Timer::VirtualCount => now.wrapping_sub(self.cntvoff),
                    Timer::PhysicalCtl => physical_timer.read(Sysreg::CntpCtl, now),
                    Timer::PhysicalCval => physical_timer.read(Sysreg::CntpCval, now),
                };
                [value, 0]
            }
            Behind::Gic(register) => [self.get_gic_register(found.vcpu, register, core[0])?, 0],
        })
    }

    /// What the core registers of a register hold after user space wrote `value`; `core` is what they held before.
    ///
    /// # Errors
    /// [`Errno::Invalid`] if it cannot hold this value.
    pub fn set_register(
        &mut self,
        found: &Found,
        now: u64,
        value: [u64; 2],
        core: [u64; 2],
    ) -> Result<[u64; 2], Errno> {
        let cntvoff = self.cntvoff;
        let one = self.created(found.vcpu)?;
        Ok(match found.behind {
            Behind::Core(_) => [value[0], core[1]],
            Behind::Core32(_) => [value[0] & u64::from(u32::MAX), core[1]],
            Behind::Core128(_) => value,
            Behind::Pstate if value[0] & !PSTATE_BITS != 0 || !PSTATE_MODES.contains(&(value[0] & 0xf)) => {
                return Err(Errno::Invalid);
            }
            Behind::Pstate => [value[0], core[1]],
            Behind::Fixed(fixed) if fixed != value[0] => return Err(Errno::Invalid),
            Behind::Fixed(_) | Behind::Nothing => core,
            Behind::BankedSpsr(n) => {
                one.banked_spsr.get_mut(n).into_iter().for_each(|spsr| *spsr = value[0]);
                core
            }
            Behind::Timer(timer) => {
                let (ctl, cval) = one.passage.virtual_timer.registers();
                match timer {
                    Timer::VirtualCtl => {
                        one.passage.virtual_timer.set_registers(value[0], cval);
                        self.wait_anew(found.vcpu, now);
                        return Ok([value[0] & (ENABLE | IMASK), core[1]]);
                    }
                    Timer::VirtualCval => {
                        one.passage.virtual_timer.set_registers(ctl, value[0]);
                        one.passage.virtual_timer.set_offset(cntvoff);
                        self.wait_anew(found.vcpu, now);
                        return Ok([value[0], core[1]]);
                    }
                    Timer::VirtualCount => self.set_count(now.wrapping_sub(value[0]), now),
                    Timer::PhysicalCtl => one.passage.physical_timer.write(Sysreg::CntpCtl, value[0], now),
                    Timer::PhysicalCval => one.passage.physical_timer.write(Sysreg::CntpCval, value[0], now),
                }
                self.wait_anew(found.vcpu, now);
                core
            }
            Behind::Gic(register) => {
                let word = self.set_gic_register(found.vcpu, register, value[0], core[0])?;
                if register.core() == Some(VMCR) {
                    self.vcpus[found.vcpu].passage.note_interface(word);
                }
                [word, core[1]]
            }
        })
    }

    /// The virtual counter of the whole VM. Those that wait look at their timers anew.
    fn set_count(&mut self, cntvoff: u64, now: u64) {
        if cntvoff == self.cntvoff {
            return;
        }
        self.cntvoff = cntvoff;
        for vcpu in 0..self.vcpus.len() {
            if let Some(one) = self.vcpus.get_mut(vcpu).filter(|one| one.created) {
                one.passage.virtual_timer.set_offset(cntvoff);
                self.kicks |= 1 << vcpu;
                self.wait_anew(vcpu, now);
            }
        }
    }
}
