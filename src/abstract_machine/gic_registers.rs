//! Fields of the registers of a GICv3's ITSs and redistributors, as far as the core looks at them. GIC architecture (IHI 0069H) 12.11, 12.19.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "the macro makes types that nobody can document")]

use tock_registers::fields::Field;
use tock_registers::{RegisterLongName, register_bitfields};

register_bitfields! {
    u64,

    /// A redistributor's control.
    pub GICR_CTLR [
        /// Its LPIs are on, and its tables in use.
        EnableLPIs OFFSET(0) NUMBITS(1) [],
        /// A write is on its way, which may be the one that cleared EnableLPIs.
        RWP OFFSET(3) NUMBITS(1) [],
    ],
    /// What a redistributor can do.
    pub GICR_TYPER [
        /// It has frames for virtual LPIs.
        VLPIS OFFSET(1) NUMBITS(1) [],
        /// It is the last one of its region.
        Last OFFSET(4) NUMBITS(1) [],
        /// Aff3 to Aff0 of its CPU.
        Affinity_Value OFFSET(32) NUMBITS(32) [],
    ],
    /// The table of what LPIs are.
    pub GICR_PROPBASER [
        /// Bits of interrupt numbers, less one.
        IDbits OFFSET(0) NUMBITS(5) [],
        /// Bits 51 to 12.
        Physical_Address OFFSET(12) NUMBITS(40) [],
    ],
    /// The table of those that are pending.
    pub GICR_PENDBASER [
        /// Bits 51 to 16.
        Physical_Address OFFSET(16) NUMBITS(36) [],
    ],
    /// An ITS's control.
    pub GITS_CTLR [
        Enabled OFFSET(0) NUMBITS(1) [],
        /// It is off, and done with all that it had.
        Quiescent OFFSET(31) NUMBITS(1) [],
    ],
    /// What an ITS can do.
    pub GITS_TYPER [
        /// Virtual LPIs.
        Virtual OFFSET(1) NUMBITS(1) [],
        /// Bytes of an entry of an interrupt translation table, less one.
        ITT_entry_size OFFSET(4) NUMBITS(4) [],
        /// Bits of a device's number, less one.
        Devbits OFFSET(13) NUMBITS(5) [],
        /// Its commands name redistributors by address.
        PTA OFFSET(19) NUMBITS(1) [],
        VMOVP OFFSET(37) NUMBITS(1) [],
        VSGI OFFSET(39) NUMBITS(1) [],
        VMAPP OFFSET(40) NUMBITS(1) [],
        SVPET OFFSET(41) NUMBITS(2) [],
    ],
    /// Its queue of commands.
    pub GITS_CBASER [
        /// Pages of 4 KiB, less one.
        Size OFFSET(0) NUMBITS(8) [],
        Shareability OFFSET(10) NUMBITS(2) [
            InnerShareable = 0b01,
        ],
        /// Bits 51 to 12.
        Physical_Address OFFSET(12) NUMBITS(40) [],
        InnerCache OFFSET(59) NUMBITS(3) [
            WriteBackAllocate = 0b111,
        ],
        Valid OFFSET(63) NUMBITS(1) [],
    ],
    /// Where the next command is written.
    pub GITS_CWRITER [
        /// An ITS that stands at a command tries it once more.
        Retry OFFSET(0) NUMBITS(1) [],
        /// In units of a command, 32 bytes.
        Offset OFFSET(5) NUMBITS(15) [],
    ],
    /// Where the next command is read.
    pub GITS_CREADR [
        /// It refuses the command there.
        Stalled OFFSET(0) NUMBITS(1) [],
        Offset OFFSET(5) NUMBITS(15) [],
    ],
    /// One of its tables.
    pub GITS_BASER [
        /// Pages, less one.
        Size OFFSET(0) NUMBITS(8) [],
        Page_Size OFFSET(8) NUMBITS(2) [],
        Shareability OFFSET(10) NUMBITS(2) [
            InnerShareable = 0b01,
        ],
        /// Bits 47 to 12.
        Physical_Address OFFSET(12) NUMBITS(36) [],
        /// Bytes of an entry, less one; the ITS's own.
        Entry_Size OFFSET(48) NUMBITS(5) [],
        /// What it is for; the ITS's own.
        Type OFFSET(56) NUMBITS(3) [
            Devices = 1,
            Collections = 4,
        ],
        InnerCache OFFSET(59) NUMBITS(3) [
            WriteBackAllocate = 0b111,
        ],
        /// Of two levels.
        Indirect OFFSET(62) NUMBITS(1) [],
        Valid OFFSET(63) NUMBITS(1) [],
    ],
}

/// The bits of a field, in place.
pub const fn bits_of<R: RegisterLongName>(field: Field<u64, R>) -> u64 {
    field.mask << field.shift
}
