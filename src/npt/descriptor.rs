//! What stands in a translation table: Arm ARM (DDI 0487) D8.3, VMSAv8-64, 4 KiB granule, 48-bit addresses.
//!
//! Pure values; nothing here touches a table.
#![forbid(unsafe_code)]

use core::fmt;

use tock_registers::{LocalRegisterCopy, register_bitfields};

use super::Level;
use crate::abstract_machine::addr::Pa;

register_bitfields! {u64,
    /// Fields common to entries of all levels and both stages.
    DESCRIPTOR [
        /// Output address or next table, bits 47 to 12.
        ADDRESS OFFSET(12) NUMBITS(36) [],
        /// Table (levels 0 to 2) or page (level 3), not block.
        TABLE OFFSET(1) NUMBITS(1) [],
        /// Valid.
        VALID OFFSET(0) NUMBITS(1) [],
    ],

    /// Attributes of a stage-2 leaf.
    STAGE2 [
        /// Execute never, for EL1 and EL0.
        XN OFFSET(53) NUMBITS(2) [
            Execute = 0b00,
            Never = 0b10,
        ],
        /// Access flag.
        AF OFFSET(10) NUMBITS(1) [],
        /// Shareability.
        SH OFFSET(8) NUMBITS(2) [
            Non = 0b00,
            Inner = 0b11,
        ],
        /// Access permission.
        S2AP OFFSET(6) NUMBITS(2) [
            ReadOnly = 0b01,
            ReadWrite = 0b11,
        ],
        /// Memory attributes. With HCR_EL2.FWB their encoding is another one, in which 0b1111 is reserved and 0b0101 means the same.
        MEMATTR OFFSET(2) NUMBITS(4) [
            DeviceNGnRE = 0b0001,
            NormalNonCacheable = 0b0101,
            ForcedWriteBack = 0b0110,
            NormalWriteBack = 0b1111,
        ],
    ],

    /// Attributes of a leaf of the core's own stage 1 (EL2, E2H = 0).
    STAGE1 [
        /// Execute never.
        XN OFFSET(54) NUMBITS(1) [],
        /// Access flag.
        AF OFFSET(10) NUMBITS(1) [],
        /// Shareability.
        SH OFFSET(8) NUMBITS(2) [
            Non = 0b00,
            Inner = 0b11,
        ],
        /// Access permission: AP[2:1]; AP[1] is RES1 in a regime without EL0.
        AP OFFSET(6) NUMBITS(2) [
            ReadWrite = 0b01,
            ReadOnly = 0b11,
        ],
        /// Index into MAIR_EL2.
        ATTRINDX OFFSET(2) NUMBITS(3) [
            Device = 0,
            Normal = 1,
        ],
    ],
}

/// MAIR_EL2 that the indexes of [`CoreAccess`] mean: 0 is Device-nGnRE, 1 is Normal write-back.
pub const MAIR_EL2_VALUE: u64 = 0xff04;

/// What the host or a VM may do with what a stage-2 leaf maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage2Access {
    /// RAM: read, write, execute; write-back cacheable. K: `PAGE_S2_KERNEL`.
    Ram,
    /// RAM that is only read and executed: an emulated ROM (K §8.3 A24).
    RamReadOnly,
    /// A window of device registers: read and write, never execute, not cacheable. Whether an access is a device
    /// access or a write-combining one stays the choice of the owner's stage 1, as without a hypervisor (K's
    /// `PAGE_S2_DEVICE` forces Device, which breaks unaligned access to frame buffers).
    Window,
}

/// What the core may do with what its own stage 1 maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoreAccess {
    /// The core's text.
    ReadExecute,
    /// Constants, and foreign memory that is only looked at.
    Read,
    /// Data, stacks, tables.
    ReadWrite,
    /// Device registers.
    Device,
}

/// One entry of a translation table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Desc(u64);

/// What an entry means at its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing.
    Invalid,
    /// The next table.
    Table(Pa),
    /// Memory, from this address on.
    Leaf(Pa),
}

impl Desc {
    /// The entry that maps nothing.
    pub const INVALID: Self = Self(0);

    /// The entry that a table holds as `raw`.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The entry as a table holds it.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// An entry that leads to the table at `table`.
    pub fn table(table: Pa) -> Self {
        Self(table.raw() | (DESCRIPTOR::TABLE::SET + DESCRIPTOR::VALID::SET).value)
    }

    /// A leaf of a stage-2 table.
    pub fn stage2(level: Level, output: Pa, access: Stage2Access) -> Self {
        let ram = STAGE2::MEMATTR::NormalWriteBack + STAGE2::SH::Inner + STAGE2::XN::Execute;
        let window = STAGE2::MEMATTR::NormalNonCacheable + STAGE2::SH::Inner + STAGE2::XN::Never;
        let attributes = match access {
            Stage2Access::Ram => ram + STAGE2::S2AP::ReadWrite,
            Stage2Access::RamReadOnly => ram + STAGE2::S2AP::ReadOnly,
            Stage2Access::Window => window + STAGE2::S2AP::ReadWrite,
        };
        Self::leaf(level, output, (attributes + STAGE2::AF::SET).value)
    }

    /// A leaf of a VM's stage-2 table. `forced` says whether VMs run with HCR_EL2.FWB ([`Machine::forces_write_back`](crate::abstract_machine::Machine::forces_write_back)).
    /// The only window of a VM is the GIC's (GICV): device memory, whatever its stage 1 says. As normal memory it would get bursts, speculative reads and table walks, which a GIC is
    /// not made for. Its encoding is the same with HCR_EL2.FWB and without.
    pub fn of_vm(level: Level, output: Pa, access: Stage2Access, forced: bool) -> Self {
        let leaf = Self::stage2(level, output, access);
        let attributes = match (access, forced) {
            (Stage2Access::Window, _) => STAGE2::MEMATTR::DeviceNGnRE + STAGE2::SH::Non,
            (_, true) => STAGE2::MEMATTR::ForcedWriteBack,
            (_, false) => return leaf,
        };
        let mut fields = LocalRegisterCopy::<u64, STAGE2::Register>::new(leaf.0);
        fields.modify(attributes);
        Self(fields.get())
    }

    /// A leaf of the core's stage-1 table.
    pub fn stage1(level: Level, output: Pa, access: CoreAccess) -> Self {
        let normal = STAGE1::ATTRINDX::Normal + STAGE1::SH::Inner + STAGE1::AF::SET;
        let attributes = match access {
            CoreAccess::ReadExecute => normal + STAGE1::AP::ReadOnly,
            CoreAccess::Read => normal + STAGE1::AP::ReadOnly + STAGE1::XN::SET,
            CoreAccess::ReadWrite => normal + STAGE1::AP::ReadWrite + STAGE1::XN::SET,
            CoreAccess::Device => STAGE1::ATTRINDX::Device + STAGE1::AF::SET + STAGE1::AP::ReadWrite + STAGE1::XN::SET,
        };
        Self::leaf(level, output, attributes.value)
    }

    fn leaf(level: Level, output: Pa, attributes: u64) -> Self {
        let form = match level {
            Level::L3 => (DESCRIPTOR::TABLE::SET + DESCRIPTOR::VALID::SET).value,
            Level::L1 | Level::L2 => DESCRIPTOR::VALID::SET.value,
        };
        Self(output.raw() | attributes | form)
    }

    fn fields(self) -> LocalRegisterCopy<u64, DESCRIPTOR::Register> {
        LocalRegisterCopy::new(self.0)
    }

    /// Address that the entry holds, whatever its kind.
    pub fn address(self) -> Pa {
        Pa::new(self.fields().read(DESCRIPTOR::ADDRESS) << 12)
    }

    /// This entry made invalid, with its address still in it: the hardware ignores all of it.
    pub fn parked(self) -> Self {
        Self(self.0 & !DESCRIPTOR::VALID::SET.value)
    }

    /// The table that a parked entry led to.
    pub fn parked_table(self) -> Option<Pa> {
        (!self.is_valid() && self.fields().is_set(DESCRIPTOR::TABLE)).then(|| self.address())
    }

    /// Whether the entry is valid.
    pub fn is_valid(self) -> bool {
        self.fields().is_set(DESCRIPTOR::VALID)
    }

    /// What the entry means in a table of level 0 (`None`), 1, 2 or 3.
    pub fn kind(self, level: Option<Level>) -> Kind {
        let fields = self.fields();
        let table_bit = fields.is_set(DESCRIPTOR::TABLE);
        match (fields.is_set(DESCRIPTOR::VALID), table_bit, level) {
            (false, ..) => Kind::Invalid,
            (true, true, Some(Level::L3)) => Kind::Leaf(self.address()),
            (true, true, _) => Kind::Table(self.address()),
            (true, false, Some(Level::L1 | Level::L2)) => Kind::Leaf(self.address()),
            // Reserved encodings: the hardware treats them as invalid.
            (true, false, _) => Kind::Invalid,
        }
    }

    /// Whether a stage-2 leaf maps RAM, not a window of device registers.
    pub fn is_ram(self) -> bool {
        let fields = LocalRegisterCopy::<u64, STAGE2::Register>::new(self.0);
        fields.matches_any(&[STAGE2::MEMATTR::NormalWriteBack, STAGE2::MEMATTR::ForcedWriteBack])
    }

    /// Whether a leaf of the core's own stage 1 maps registers of devices.
    pub fn is_core_device(self) -> bool {
        self.is_valid() && LocalRegisterCopy::<u64, STAGE1::Register>::new(self.0).matches_all(STAGE1::ATTRINDX::Device)
    }

    /// The leaf of the next smaller level for the part of this leaf's memory that starts `offset` bytes into it.
    pub fn shrunk(self, smaller: Level, offset: u64) -> Self {
        let attributes = self.0 & !(DESCRIPTOR::ADDRESS.mask << DESCRIPTOR::ADDRESS.shift) & !0b11;
        Self::leaf(smaller, Pa::new(self.address().raw() + offset), attributes)
    }
}

impl fmt::Debug for Desc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Desc({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ram_page_is_read_write_execute_and_write_back() {
        // Valid page, AF, inner shareable, S2AP = 11, MemAttr = 1111: K's PAGE_S2_KERNEL is 0xfff for the same memory.
        assert_eq!(Desc::stage2(Level::L3, Pa::new(0x4000_1000), Stage2Access::Ram).raw(), 0x4000_1000 | 0x7ff);
    }

    #[test]
    fn a_window_of_a_vm_is_device_memory_whatever_its_stage_1_says() {
        // Device-nGnRE (MemAttr 0001), SH 0; AF, S2AP = 11, XN as before.
        for forced in [false, true] {
            let window = Desc::of_vm(Level::L3, Pa::new(0x0803_0000), Stage2Access::Window, forced);
            assert_eq!(window.raw(), 1 << 54 | 0x0803_0000 | 0x4c7, "FWB: {forced}");
            assert!(!window.is_ram());
        }
    }

    #[test]
    fn where_vms_run_with_fwb_their_ram_is_forced_write_back() {
        let at = Pa::new(0x4020_0000);
        let of_vm = |access, forced| Desc::of_vm(Level::L2, at, access, forced);
        for access in [Stage2Access::Ram, Stage2Access::RamReadOnly] {
            let plain = Desc::stage2(Level::L2, at, access);
            assert_eq!(of_vm(access, false), plain);
            assert_eq!(of_vm(access, true).is_ram(), plain.is_ram());
            // All but MemAttr is the same.
            assert_eq!((of_vm(access, true).raw() ^ plain.raw()) & !(0xf << 2), 0);
        }
        let attributes = |access| of_vm(access, true).raw() >> 2 & 0xf;
        assert_eq!([Stage2Access::Ram, Stage2Access::RamReadOnly].map(attributes), [0b0110, 0b0110]);
    }

    #[test]
    fn a24_read_only_ram_is_executable_and_not_writable() {
        assert_eq!(Desc::stage2(Level::L3, Pa::new(0x4000_1000), Stage2Access::RamReadOnly).raw(), 0x4000_1000 | 0x77f);
    }

    #[test]
    fn a_window_is_never_executable_nor_cacheable() {
        let raw = Desc::stage2(Level::L2, Pa::new(0x0800_0000), Stage2Access::Window).raw();
        assert_eq!(raw, 1 << 54 | 0x0800_0000 | 0x7d5);
    }

    #[test]
    fn core_data_is_never_executable_and_core_text_never_writable() {
        let text = Desc::stage1(Level::L3, Pa::new(0x1000), CoreAccess::ReadExecute).raw();
        let data = Desc::stage1(Level::L3, Pa::new(0x1000), CoreAccess::ReadWrite).raw();
        assert_eq!((text >> 54 & 1, text >> 7 & 1), (0, 1));
        assert_eq!((data >> 54 & 1, data >> 7 & 1), (1, 0));
    }

    #[test]
    fn an_entry_means_what_its_level_says() {
        let page = Desc::stage2(Level::L3, Pa::new(0x5000), Stage2Access::Ram);
        assert_eq!(page.kind(Some(Level::L3)), Kind::Leaf(Pa::new(0x5000)));
        assert_eq!(page.kind(Some(Level::L2)), Kind::Table(Pa::new(0x5000)));
        let block = Desc::stage2(Level::L2, Pa::new(0x20_0000), Stage2Access::Ram);
        assert_eq!(block.kind(Some(Level::L2)), Kind::Leaf(Pa::new(0x20_0000)));
        assert_eq!(block.kind(Some(Level::L3)), Kind::Invalid);
        assert_eq!(block.kind(None), Kind::Invalid);
    }

    #[test]
    fn a_shrunk_leaf_keeps_its_attributes() {
        let block = Desc::stage2(Level::L2, Pa::new(0x20_0000), Stage2Access::Window);
        assert_eq!(block.shrunk(Level::L3, 0x3000), Desc::stage2(Level::L3, Pa::new(0x20_3000), Stage2Access::Window));
    }
}
