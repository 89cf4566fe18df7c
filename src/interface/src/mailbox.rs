//! The page through which a host runs a vCPU. K §3.5: the "intermediate vCPU".
//!
//! It is the host's memory, writable by it at any time, from any CPU. The core copies what it takes from it once, at entry, then checks
//! the copy (K §8.3 A2, A17); it writes to it once, at exit. All fields are 64-bit, little endian, at the offsets of this type.
//!
//! What an exit shows and what an entry takes back, by [`ExitReason`] (K §3.5; the core's table is `vcpu::exposure`):
//!
//! | reason      | shown                                              | taken back at the next entry                |
//! |-------------|----------------------------------------------------|---------------------------------------------|
//! | Irq, Timer  | nothing                                            | nothing                                     |
//! | Wfx         | `esr.ISS.TI`                                       | nothing; PC + 4                             |
//! | MmioRead    | `ipa`, `esr` (ISV, SAS, SSE, SRT, SF)              | `x[SRT]`, unless SRT is 31 (K A8); PC + 4   |
//! | MmioWrite   | the same, and `x[SRT]`: the bytes that are stored  | nothing; PC + 4                             |
//! | MemoryFault | `ipa` (page), `esr`: write (of a walk: its own), fetch | nothing; the access is made again         |
//! | Psci        | `x[0]`; of CPU_ON also `x[1]` to `x[3]`            | nothing: the call has succeeded             |
//! | Sysreg      | `esr` (ISS: which register, which way); for a write `x[Rt]`, as wide as the register | for a read `x[Rt]`; PC + 4 |
//! | SystemOff   | `x[0]`: the PSCI function (SYSTEM_OFF, SYSTEM_RESET) | nothing: the VM never runs again          |
//! | Stopped     | nothing: the VM was powered off by the host         | -                                          |
//! | Failed      | `esr` class: the VM did what the core cannot serve (SError, ...) | nothing: it never runs again  |
//!
//! Ordinary VMs show the same; their other registers are there for the asking (GetRegister, SetRegister).

/// Why VcpuRun returned: x0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum ExitReason {
    /// A physical interrupt is pending: the host takes it as soon as it unmasks.
    Irq = 0,
    /// The VM's virtual timer fired, and the core did not deliver its interrupt; the core has masked it at the CPU (CNTV_CTL.IMASK) until the next entry at which the host shows the
    /// interrupt as active, pending or no longer asserted. See [`Mailbox::cntv_ctl`].
    Timer = 1,
    /// WFI; WFE does not trap. Or a call that waits as it does.
    Wfx = 2,
    /// A load from where the VM has no memory and none can be: below its RAM or not mapped.
    MmioRead = 3,
    /// A store to such a place.
    MmioWrite = 4,
    /// An access that the syndrome does not describe (no ISV), an instruction fetch or a walk that found nothing mapped: the host maps memory, or powers the VM off.
    MemoryFault = 5,
    /// The VM called CPU_ON, and the host is to run that vCPU; or CPU_OFF. The core has done its part, and answered: the host cannot say that it failed.
    Psci = 6,
    /// A trapped system register: GICv3 SGI generation, physical timer.
    Sysreg = 7,
    /// The VM switched itself off or asked for a reset. State POWEROFF.
    SystemOff = 8,
    /// The VM was powered off by the host while it ran.
    Stopped = 9,
    /// The VM failed. State POWEROFF.
    Failed = 10,
}

impl ExitReason {
    /// Every reason, in order.
    pub const ALL: [Self; 11] = [
        Self::Irq,
        Self::Timer,
        Self::Wfx,
        Self::MmioRead,
        Self::MmioWrite,
        Self::MemoryFault,
        Self::Psci,
        Self::Sysreg,
        Self::SystemOff,
        Self::Stopped,
        Self::Failed,
    ];

    /// The reason that x0 holds.
    pub fn from_x0(x0: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(x0).ok()?).copied()
    }
}

/// Most GIC list registers that the architecture has.
pub const MAX_LIST_REGISTERS: usize = 16;

/// [`Mailbox::entry_flags`]: HCR_EL2.VI, a virtual IRQ without the virtual CPU interface (an interrupt controller emulated by the host).
pub const ENTRY_VIRQ: u64 = 1 << 0;
/// [`Mailbox::entry_flags`]: HCR_EL2.VF.
pub const ENTRY_VFIQ: u64 = 1 << 1;
/// [`Mailbox::entry_flags`]: the access that the last exit reported ends with a synchronous external abort in the VM, instead of being served.
pub const ENTRY_INJECT_ABORT: u64 = 1 << 2;
/// [`Mailbox::entry_flags`]: the VM's timer may interrupt again (the host has deactivated its virtual interrupt).
pub const ENTRY_TIMER_UNMASK: u64 = 1 << 3;
/// [`Mailbox::entry_flags`]: first entry of a vCPU of an ordinary VM: it starts with the registers that SetRegister wrote (those it did not are 0), as a
/// restored one does; `pc`, `pstate` and `x0` are not looked at. Refused in a protected VM. No meaning later.
pub const ENTRY_KEEP_REGISTERS: u64 = 1 << 4;

/// [`Mailbox::direct`]: SGIs that the core may deliver by itself, one bit each. They are in group 1.
pub const DIRECT_SGIS: u64 = 0xffff;
/// [`Mailbox::direct`]: where the priority of these SGIs is, 8 bits.
pub const DIRECT_SGI_PRIORITY_SHIFT: u32 = 16;
/// [`Mailbox::direct`]: the core may deliver the virtual timer's interrupt by itself. In a list register of the host's it has to make a maintenance interrupt at its end (EOI).
pub const DIRECT_TIMER: u64 = 1 << 24;
/// [`Mailbox::direct`]: the core may interrupt another CPU of this VM, by the machine's own SGI named next.
pub const DIRECT_KICK: u64 = 1 << 25;
/// [`Mailbox::direct`]: where that SGI's number is, 4 bits. It must be of group 1 and of a higher priority than any other interrupt of the machine that is
/// enabled: an interrupt that comes between could be lost otherwise.
pub const DIRECT_KICK_SGI_SHIFT: u32 = 26;
/// [`Mailbox::direct`]: where the priority of the timer's interrupt is, 8 bits.
pub const DIRECT_TIMER_PRIORITY_SHIFT: u32 = 30;
/// [`Mailbox::direct`]: all bits that mean something, the low ones.
pub const DIRECT_KNOWN: u64 = (1 << (DIRECT_TIMER_PRIORITY_SHIFT + 8)) - 1;

/// The page. Fields marked "in" are read by the core at entry, "out" written by it at exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Mailbox {
    /// in: ENTRY_*.
    pub entry_flags: u64,
    /// in, first entry of a vCPU that the VM itself did not start (by PSCI CPU_ON): where it starts. In a protected VM it must be the entry point of the manifest.
    pub pc: u64,
    /// in, first entry: processor state; EL1h with all masked is what the core takes (K A9), anything else is an error.
    pub pstate: u64,
    /// in, first entry of vCPU 0: x0, the address of the device tree; x1 to x3 are 0.
    pub x0: u64,
    /// in and out: general registers, each only where the table above says so; x[31] is not used.
    pub x: [u64; 32],
    /// out: ESR_EL2, only the fields that the table names.
    pub esr: u64,
    /// out: the address in the VM, with its offset in the page where it is MMIO.
    pub ipa: u64,
    /// in and out: number of list registers in use, at most CoreInfo's. An exit leaves it as it was, or says more: those behind the host's own hold what the core
    /// has delivered by itself ([`Mailbox::direct`]), also where the VM has ended it meanwhile.
    pub lr_count: u64,
    /// in and out: the first `lr_count` list registers, in the form of the machine's GIC: GICH_LR<n> or ICH_LR<n>_EL2. Hardware-linked ones (HW) are refused
    /// except for the VM's own timer.
    pub lr: [u64; MAX_LIST_REGISTERS],
    /// in: maintenance interrupt enables of GICH_HCR or ICH_HCR_EL2 (UIE, NPIE, LRENPIE); other bits are the core's. out: its EOIcount, the number of interrupts
    /// that the VM has ended and that no list register holds.
    pub vgic_hcr: u64,
    /// out: GICH_VMCR or ICH_VMCR_EL2.
    pub vgic_vmcr: u64,
    /// out: GICH_MISR or ICH_MISR_EL2.
    pub vgic_misr: u64,
    /// out: CNTV_CTL_EL0 of the VM: enable, mask as the VM set them; ISTATUS as it was.
    pub cntv_ctl: u64,
    /// out: CNTV_CVAL_EL0 of the VM, in ticks of CNTFRQ_EL0 of its own counter.
    pub cntv_cval: u64,
    /// out: CNTVOFF_EL2 of the VM: the timer fires when the physical counter is at `cntv_cval + cntvoff`.
    pub cntvoff: u64,
    /// out: number of exits of this vCPU so far.
    pub exits: u64,
    /// out: PSCI state the core has for the vCPU: 0 off, 1 on.
    pub powered: u64,
    /// in, GICv3 only, else 0: which of the vCPU's private interrupts the core may deliver by itself, without an exit: DIRECT_*. The host names those that are enabled and
    /// have no state in its model but in a list register of this entry, and enables the machine's maintenance interrupt where it names the timer. 0: none, every
    /// one of them is an exit.
    pub direct: u64,
    /// out: SGIs that other vCPUs have sent to this one by way of the core and that stand in no list register, one bit each. They are pending.
    pub sgis: u64,
}

impl Mailbox {
    /// All zero.
    pub const EMPTY: Self = Self {
        entry_flags: 0,
        pc: 0,
        pstate: 0,
        x0: 0,
        x: [0; 32],
        esr: 0,
        ipa: 0,
        lr_count: 0,
        lr: [0; MAX_LIST_REGISTERS],
        vgic_hcr: 0,
        vgic_vmcr: 0,
        vgic_misr: 0,
        cntv_ctl: 0,
        cntv_cval: 0,
        cntvoff: 0,
        exits: 0,
        powered: 0,
        direct: 0,
        sgis: 0,
    };

    /// Its 64-bit words in order, for copying it word by word.
    pub const WORDS: usize = size_of::<Self>() / 8;
}

/// The only processor state that a vCPU may start in: EL1h, D, A, I and F masked.
pub const START_PSTATE: u64 = 0x3c5;

/// Registers of GetRegister and SetRegister: number of the register file of `abstract_machine::shadow` (`ShadowReg`).
/// 0 to 30: x0 to x30; the rest by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Register {
    /// x0; x`n` is this plus n.
    X0 = 0,
    /// SP_EL0.
    SpEl0 = 31,
    /// Program counter.
    Pc = 32,
    /// Processor state.
    Pstate = 33,
    /// SP_EL1.
    SpEl1 = 34,
    /// The others start here: 40 + position in `abstract_machine::shadow::BankReg`'s list of EL1 registers.
    El1 = 40,
    /// Low and high halves of q0 and on: 128 + 2 * n and 129 + 2 * n.
    Q0 = 128,
    /// FPSR.
    Fpsr = 192,
    /// FPCR.
    Fpcr = 193,
    /// GICH_VMCR or ICH_VMCR_EL2: the VM's CPU interface.
    Vmcr = 200,
    /// ICH_AP0R0_EL2 to ICH_AP0R3_EL2, then ICH_AP1R0_EL2 to ICH_AP1R3_EL2; of GICv2 only the first, GICH_APR.
    Ap0r = 201,
    /// Read only: ESR_EL2 of the last exit that trapped, whole. The host of an ordinary VM finishes by it an access above the start of VMs' memory,
    /// where it has a device.
    Syndrome = 210,
    /// Read only: FAR_EL2 of that exit.
    FaultAddress = 211,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_fits_into_its_page_and_is_whole_words() {
        assert!(size_of::<Mailbox>() <= 4096 && size_of::<Mailbox>() == Mailbox::WORDS * 8);
    }

    #[test]
    fn every_reason_is_found_by_its_number() {
        assert!(ExitReason::ALL.iter().all(|reason| ExitReason::from_x0(*reason as u64) == Some(*reason)));
        assert_eq!(ExitReason::from_x0(11), None);
    }
}
