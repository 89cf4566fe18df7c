//! SMMUv3: every stream goes through one stage-2 table; commands that make it forget; what it refused.
//!
//! The core keeps all SMMUs of the machine for itself. All streams have the same entry: stage 1 bypassed, stage 2 by the table of `spt`, faults terminated and recorded. A stream number
//! that the stream table does not reach is refused by the SMMU (K §8.2 D13), and so is everything while the SMMU is being set up (SMMU_GBPA.ABORT). No page of requests from
//! devices: address translation services are refused (STE.EATS = 0, SMMU_CR0.ATSCHK).
//!
//! Source: SMMU architecture version 3 (IHI 0070): 3.3 and 5 (stream table), 3.5 and 4 (commands), 6 (registers), 7.3 (events).

use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_cpu::asm::barrier;
use spin::mutex::SpinMutex;
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, ReadWrite};
use tock_registers::{register_bitfields, register_structs};

use super::super::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE, Pa, PhysRange};
use super::super::per_cpu::{Event, TOLD};
use super::super::shape::Shape;
use super::super::stream_table::{SPLIT, StreamTable};
use super::super::turn::{CpuWords, Words};
use super::pool;

/// Most SMMUs that the core drives.
pub const MOST: usize = 16;

register_bitfields! {u32,
    IDR0 [
        /// Stage 2 is there.
        S2P OFFSET(0) NUMBITS(1) [],
        /// Tables that it walks.
        TTF OFFSET(2) NUMBITS(2) [ AArch64 = 0b10, Both = 0b11 ],
        /// Its walks and queues see caches.
        COHACC OFFSET(4) NUMBITS(1) [],
        /// Address translation services.
        ATS OFFSET(10) NUMBITS(1) [],
        /// What becomes of a refused access: the device may be told, or waits for the SMMU's driver in any case.
        STALL_MODEL OFFSET(24) NUMBITS(2) [ Forced = 0b10 ],
        /// Stream tables of two levels.
        ST_LEVEL OFFSET(27) NUMBITS(2) [ Linear = 0b00, TwoLevels = 0b01 ],
    ],
    IDR1 [
        SIDSIZE OFFSET(0) NUMBITS(6) [],
        EVENTQS OFFSET(16) NUMBITS(5) [],
        CMDQS OFFSET(21) NUMBITS(5) [],
        /// Base addresses of tables and queues are fixed.
        PRESET OFFSET(28) NUMBITS(3) [ None = 0 ],
    ],
    IDR3 [
        /// What a change of block sizes needs.
        BBML OFFSET(11) NUMBITS(2) [ InPlace = 2 ],
    ],
    IDR5 [
        /// Output size, coded as in ID_AA64MMFR0_EL1.PARange.
        OAS OFFSET(0) NUMBITS(3) [],
        GRAN4K OFFSET(4) NUMBITS(1) [],
    ],
    CR0 [
        SMMUEN OFFSET(0) NUMBITS(1) [],
        EVENTQEN OFFSET(2) NUMBITS(1) [],
        CMDQEN OFFSET(3) NUMBITS(1) [],
        ATSCHK OFFSET(4) NUMBITS(1) [],
    ],
    CR1 [
        QUEUE_IC OFFSET(0) NUMBITS(2) [ WriteBack = 1 ],
        QUEUE_OC OFFSET(2) NUMBITS(2) [ WriteBack = 1 ],
        QUEUE_SH OFFSET(4) NUMBITS(2) [ Inner = 3 ],
        TABLE_IC OFFSET(6) NUMBITS(2) [ WriteBack = 1 ],
        TABLE_OC OFFSET(8) NUMBITS(2) [ WriteBack = 1 ],
        TABLE_SH OFFSET(10) NUMBITS(2) [ Inner = 3 ],
    ],
    CR2 [
        /// Record accesses by numbers that no stream has.
        RECINVSID OFFSET(1) NUMBITS(1) [],
        /// Only commands make it forget, not the CPUs' TLBIs.
        PTM OFFSET(2) NUMBITS(1) [],
    ],
    GBPA [
        ABORT OFFSET(20) NUMBITS(1) [],
        UPDATE OFFSET(31) NUMBITS(1) [],
    ],
    GERROR [
        CMDQ_ERR OFFSET(0) NUMBITS(1) [],
    ],
    STRTAB_BASE_CFG [
        LOG2SIZE OFFSET(0) NUMBITS(6) [],
        SPLIT OFFSET(6) NUMBITS(5) [],
        FMT OFFSET(16) NUMBITS(2) [ Linear = 0, TwoLevels = 1 ],
    ],
}

register_bitfields! {u64,
    /// Bases of tables and queues: the address stands in its own place.
    BASE [
        LOG2SIZE OFFSET(0) NUMBITS(5) [],
        /// Read-allocate, for the command queue and tables; write-allocate for the event queue.
        ALLOCATE OFFSET(62) NUMBITS(1) [],
    ],
    /// First doubleword of a stream table entry.
    STE0 [
        V OFFSET(0) NUMBITS(1) [],
        CONFIG OFFSET(1) NUMBITS(3) [ Stage2 = 0b110 ],
    ],
    /// Second.
    STE1 [
        /// Shareability of the device's own.
        SHCFG OFFSET(44) NUMBITS(2) [ Incoming = 0b01 ],
    ],
    /// Third.
    STE2 [
        S2VMID OFFSET(0) NUMBITS(16) [],
        S2T0SZ OFFSET(32) NUMBITS(6) [],
        S2SL0 OFFSET(38) NUMBITS(2) [],
        S2IR0 OFFSET(40) NUMBITS(2) [ WriteBack = 1 ],
        S2OR0 OFFSET(42) NUMBITS(2) [ WriteBack = 1 ],
        S2SH0 OFFSET(44) NUMBITS(2) [ Inner = 3 ],
        S2TG OFFSET(46) NUMBITS(2) [ Granule4K = 0 ],
        S2PS OFFSET(48) NUMBITS(3) [],
        S2AA64 OFFSET(51) NUMBITS(1) [],
        /// Walks to device memory fault.
        S2PTW OFFSET(54) NUMBITS(1) [],
        /// Faults are recorded.
        S2R OFFSET(58) NUMBITS(1) [],
    ],
    /// First doubleword of a command.
    COMMAND [
        CODE OFFSET(0) NUMBITS(8) [
            CfgiAll = 0x04,
            TlbiS12Vmall = 0x28,
            TlbiS2Ipa = 0x2a,
            TlbiNsnhAll = 0x30,
            Sync = 0x46,
        ],
        VMID OFFSET(32) NUMBITS(16) [],
    ],
    /// First doubleword of an event.
    EVENT [
        CODE OFFSET(0) NUMBITS(8) [],
        STREAM OFFSET(32) NUMBITS(32) [],
    ],
}

register_structs! {
    Registers {
        (0x000 => idr0: ReadOnly<u32, IDR0::Register>),
        (0x004 => idr1: ReadOnly<u32, IDR1::Register>),
        (0x008 => _idr2),
        (0x00c => idr3: ReadOnly<u32, IDR3::Register>),
        (0x010 => _idr4),
        (0x014 => idr5: ReadOnly<u32, IDR5::Register>),
        (0x018 => _iidr),
        (0x020 => cr0: ReadWrite<u32, CR0::Register>),
        (0x024 => cr0ack: ReadOnly<u32, CR0::Register>),
        (0x028 => cr1: ReadWrite<u32, CR1::Register>),
        (0x02c => cr2: ReadWrite<u32, CR2::Register>),
        (0x030 => _statusr),
        (0x044 => gbpa: ReadWrite<u32, GBPA::Register>),
        (0x048 => _agbpa),
        (0x050 => irq_ctrl: ReadWrite<u32>),
        (0x054 => _irq_ctrlack),
        (0x060 => gerror: ReadOnly<u32, GERROR::Register>),
        (0x064 => gerrorn: ReadWrite<u32, GERROR::Register>),
        (0x068 => _gerror_irq),
        (0x080 => strtab_base: ReadWrite<u64, BASE::Register>),
        (0x088 => strtab_base_cfg: ReadWrite<u32, STRTAB_BASE_CFG::Register>),
        (0x08c => _reserved),
        (0x090 => cmdq_base: ReadWrite<u64, BASE::Register>),
        (0x098 => cmdq_prod: ReadWrite<u32>),
        (0x09c => cmdq_cons: ReadWrite<u32>),
        (0x0a0 => eventq_base: ReadWrite<u64, BASE::Register>),
        (0x0a8 => _page0),
        (0x100a8 => eventq_prod: ReadWrite<u32>),
        (0x100ac => eventq_cons: ReadWrite<u32>),
        (0x100b0 => @END),
    }
}

/// Why the core cannot drive an SMMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// No stage 2 with 64-bit tables of 4 KiB pages.
    NoStage2,
    /// It does not see what caches hold.
    NotCoherent,
    /// Its tables or queues have fixed places.
    Preset,
    /// There are fewer registers than there should be.
    Small,
    /// A refused access waits for somebody to decide, who is not there.
    Stalls,
    /// Its command queue is too short for a flush and what waits for it.
    ShortQueue,
}

/// What an SMMU can do.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// Bits of an output address.
    pub bits: u32,
    /// Whether a block may become a table, and back, while devices use it.
    pub in_place: bool,
}

/// Commands in a page, log 2, and events.
const COMMANDS_LOG2: u32 = PAGE_SHIFT - 4;
const EVENTS_LOG2: u32 = PAGE_SHIFT - 5;
/// Four places: two commands and the one that waits for them ([`start`]), and one that stays free.
const LEAST_COMMANDS_LOG2: u32 = 2;
/// VMID of all streams: the host's, whose devices they are.
const HOST: u64 = 0;
/// Bit of an index that says that the queue has overflown.
const OVERFLOWN: u32 = 1 << 31;

type Entry = [u64; 8];

/// One SMMU at work.
struct Unit {
    registers: &'static Registers,
    commands: Pa,
    commands_log2: u32,
    events: Pa,
    events_log2: u32,
}

// SAFETY: device registers are the same for every CPU, and only the holder of `UNITS` uses them.
unsafe impl Send for Unit {}

static UNITS: SpinMutex<[Option<Unit>; MOST]> = SpinMutex::new([const { None }; MOST]);
static ANY: AtomicBool = AtomicBool::new(false);

/// The registers at `range`.
///
/// # Safety
/// An SMMUv3 has its registers there, mapped as device memory for good; nobody else uses them.
unsafe fn registers(range: PhysRange) -> &'static Registers {
    // SAFETY: the caller's promise.
    unsafe { &*(range.base().raw() as *const Registers) }
}

/// What the SMMU at `range` can do.
///
/// # Errors
/// [`Unfit`].
///
/// # Safety
/// As [`registers`].
pub unsafe fn look_at(range: PhysRange) -> Result<Abilities, Unfit> {
    if range.size() < size_of::<Registers>() as u64 {
        return Err(Unfit::Small);
    }
    // SAFETY: the caller's promise.
    let registers = unsafe { registers(range) };
    let (idr0, idr5) = (registers.idr0.extract(), registers.idr5.extract());
    let tables = idr0.matches_any(&[IDR0::TTF::AArch64, IDR0::TTF::Both]) && idr5.is_set(IDR5::GRAN4K);
    if !idr0.is_set(IDR0::S2P) || !tables {
        return Err(Unfit::NoStage2);
    }
    if !idr0.is_set(IDR0::COHACC) {
        return Err(Unfit::NotCoherent);
    }
    // A stream with stage 2 alone that does not stall is illegal then (IHI 0070 5.5).
    if idr0.matches_all(IDR0::STALL_MODEL::Forced) {
        return Err(Unfit::Stalls);
    }
    if !registers.idr1.matches_all(IDR1::PRESET::None) {
        return Err(Unfit::Preset);
    }
    if registers.idr1.read(IDR1::CMDQS) < LEAST_COMMANDS_LOG2 {
        return Err(Unfit::ShortQueue);
    }
    let bits = match idr5.read(IDR5::OAS) {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    };
    Ok(Abilities { bits, in_place: registers.idr3.matches_all(IDR3::BBML::InPlace) })
}

/// Makes the SMMU at `range` put all streams behind the table at `root`. Until it does, it refuses everything. `None` if the pool has no pages for its queues, or there are [`MOST`] already.
///
/// # Safety
/// As [`registers`]; [`look_at`] found nothing unfit; the table stays as long as the machine runs.
pub unsafe fn start(range: PhysRange, root: Pa, shape: Shape) -> Option<()> {
    // SAFETY: the caller's promise.
    let registers = unsafe { registers(range) };
    // First: one that runs must be one that `flush` reaches.
    let mut units = UNITS.lock();
    let place = units.iter_mut().find(|place| place.is_none())?;
    refuse_all(registers);
    let (stream_table, layout) = write_stream_table(registers, stage2_entry(registers, root, shape))?;
    let unit = Unit {
        registers,
        commands: pool::alloc(0)?,
        commands_log2: registers.idr1.read(IDR1::CMDQS).min(COMMANDS_LOG2),
        events: pool::alloc(0)?,
        events_log2: registers.idr1.read(IDR1::EVENTQS).min(EVENTS_LOG2),
    };
    registers.cr1.write(
        CR1::QUEUE_IC::WriteBack
            + CR1::QUEUE_OC::WriteBack
            + CR1::QUEUE_SH::Inner
            + CR1::TABLE_IC::WriteBack
            + CR1::TABLE_OC::WriteBack
            + CR1::TABLE_SH::Inner,
    );
    registers.cr2.write(CR2::RECINVSID::SET + CR2::PTM::SET);
    registers.irq_ctrl.set(0);
    registers.strtab_base.set(stream_table.raw() | BASE::ALLOCATE::SET.value);
    registers.strtab_base_cfg.set(layout);
    let base = |queue: Pa, log2: u32| queue.raw() | (BASE::ALLOCATE::SET + BASE::LOG2SIZE.val(log2.into())).value;
    registers.cmdq_base.set(base(unit.commands, unit.commands_log2));
    registers.cmdq_prod.set(0);
    registers.cmdq_cons.set(0);
    registers.eventq_base.set(base(unit.events, unit.events_log2));
    registers.eventq_prod.set(0);
    registers.eventq_cons.set(0);
    barrier::dsb(barrier::SY);
    let checked = if registers.idr0.is_set(IDR0::ATS) { CR0::ATSCHK::SET } else { CR0::ATSCHK::CLEAR };
    switch(registers, (checked + CR0::CMDQEN::SET).value);
    unit.run([[COMMAND::CODE::CfgiAll.value, ALL_STREAMS], [COMMAND::CODE::TlbiNsnhAll.value, 0]].into_iter());
    switch(registers, (checked + CR0::CMDQEN::SET + CR0::EVENTQEN::SET + CR0::SMMUEN::SET).value);
    *place = Some(unit);
    ANY.store(true, Ordering::Release);
    Some(())
}

/// Second doubleword of CMD_CFGI_ALL.
const ALL_STREAMS: u64 = 31;

/// Off, and while it is off every access is refused.
fn refuse_all(registers: &Registers) {
    registers.gbpa.write(GBPA::ABORT::SET + GBPA::UPDATE::SET);
    while registers.gbpa.is_set(GBPA::UPDATE) {
        CpuWords::relax();
    }
    switch(registers, 0);
}

/// Writes SMMU_CR0 and waits until it is so.
fn switch(registers: &Registers, value: u32) {
    registers.cr0.set(value);
    while registers.cr0ack.get() != value {
        CpuWords::relax();
    }
}

/// The entry of every stream.
fn stage2_entry(registers: &Registers, root: Pa, shape: Shape) -> Entry {
    let stage2 = STE2::S2VMID.val(HOST)
        + STE2::S2T0SZ.val(u64::from(64 - shape.ia_bits()))
        + STE2::S2SL0.val(if shape.has_level0() { 2 } else { 1 })
        + STE2::S2IR0::WriteBack
        + STE2::S2OR0::WriteBack
        + STE2::S2SH0::Inner
        + STE2::S2TG::Granule4K
        + STE2::S2PS.val(registers.idr5.read(IDR5::OAS).min(5).into())
        + STE2::S2AA64::SET
        + STE2::S2PTW::SET
        + STE2::S2R::SET;
    let first = (STE0::V::SET + STE0::CONFIG::Stage2).value;
    [first, STE1::SHCFG::Incoming.value, stage2.value, root.raw(), 0, 0, 0, 0]
}

/// Pages of the pool for so many bytes.
fn pages(bytes: u64) -> Option<Pa> {
    pool::alloc(bytes.div_ceil(PAGE_SIZE).next_power_of_two().ilog2())
}

/// Writes a stream table in which every stream has this entry: where it is, and what SMMU_STRTAB_BASE_CFG says of it.
fn write_stream_table(registers: &Registers, entry: Entry) -> Option<(Pa, u32)> {
    let two_levels = registers.idr0.matches_all(IDR0::ST_LEVEL::TwoLevels);
    let table = StreamTable::new(registers.idr1.read(IDR1::SIDSIZE), two_levels);
    let entries = pages(table.entries_size())?;
    for n in 0..table.entries() as usize {
        // SAFETY: fresh pages of the pool, large enough for all entries, which nobody else has.
        unsafe { (entries.raw() as *mut Entry).add(n).write_volatile(entry) };
    }
    let size = STRTAB_BASE_CFG::LOG2SIZE.val(table.log2_size());
    if !table.has_two_levels() {
        return Some((entries, (STRTAB_BASE_CFG::FMT::Linear + size).value));
    }
    let descriptors = pages(table.descriptors_size())?;
    for n in 0..table.descriptors() as usize {
        // SAFETY: as above, for all descriptors.
        unsafe { (descriptors.raw() as *mut u64).add(n).write_volatile(StreamTable::descriptor(entries)) };
    }
    Some((descriptors, (STRTAB_BASE_CFG::FMT::TwoLevels + STRTAB_BASE_CFG::SPLIT.val(SPLIT) + size).value))
}

impl Unit {
    /// Gives these commands and a CMD_SYNC to the SMMU, together fewer than its queue has places, and waits until it is done with all: then it has forgotten, and accesses that used what it
    /// forgot are over. Nothing else waits in the queue.
    fn run(&self, commands: impl Iterator<Item = [u64; 2]>) {
        let sync = [COMMAND::CODE::Sync.value, 0];
        let wrap = (2 << self.commands_log2) - 1;
        let mut at = self.registers.cmdq_prod.get() & wrap;
        for command in commands.chain([sync]) {
            let index = at as usize & ((1 << self.commands_log2) - 1);
            // SAFETY: within the queue's page, which only the holder of `UNITS` writes; the SMMU reads what is before PROD, and these places are behind it:
            // nothing else waits.
            unsafe { (self.commands.raw() as *mut [u64; 2]).add(index).write_volatile(command) };
            at = (at + 1) & wrap;
        }
        barrier::dsb(barrier::SY);
        self.registers.cmdq_prod.set(at);
        while self.registers.cmdq_cons.get() & wrap != at {
            let failed =
                self.registers.gerror.is_set(GERROR::CMDQ_ERR) != self.registers.gerrorn.is_set(GERROR::CMDQ_ERR);
            assert!(!failed, "an SMMU refuses a command: CMDQ_CONS {:#x}", self.registers.cmdq_cons.get());
            CpuWords::relax();
        }
    }

    fn flush(&self, at: Ipa, pages: u64) {
        // One place stays free, or a full queue would look like an empty one.
        let most = (1u64 << self.commands_log2).saturating_sub(2).min(MOST_BY_PAGE);
        let by_page = pages <= most;
        self.run((0..if by_page { pages } else { 1 }).map(|n| {
            // Bit 0, Leaf, is clear: what is known of the tables on the way goes too.
            let (code, at) = match by_page {
                true => (COMMAND::CODE::TlbiS2Ipa, at.raw() + n * PAGE_SIZE),
                false => (COMMAND::CODE::TlbiS12Vmall, 0),
            };
            [(code + COMMAND::VMID.val(HOST)).value, at]
        }));
    }

    /// Takes the events from the queue: how many they were. The first that there is room for come to `told`.
    fn drain(&self, told: &mut Told) -> u64 {
        let wrap = (2 << self.events_log2) - 1;
        let (mut at, end) = (self.registers.eventq_cons.get() & wrap, self.registers.eventq_prod.get());
        let mut count = 0;
        // No event is read before PROD said that it is there.
        barrier::dmb(barrier::LD);
        while at != end & wrap {
            let index = at as usize & ((1 << self.events_log2) - 1);
            // SAFETY: within the queue's page; the SMMU has written what is before PROD (IHI 0070 3.5.2), and the barrier keeps this load behind PROD's. It does not write
            // there again before CONS has passed.
            let event = unsafe { (self.events.raw() as *const [u64; 4]).add(index).read_volatile() };
            told.keep(event);
            (at, count) = ((at + 1) & wrap, count + 1);
        }
        // The overflow bit is acknowledged by its copy.
        self.registers.eventq_cons.set(at | end & OVERFLOWN);
        count
    }
}

/// Most pages that are forgotten one by one; more are forgotten with all others.
const MOST_BY_PAGE: u64 = 64;

/// See `Machine::smmu_flush`.
pub fn flush(at: Ipa, pages: u64) {
    if ANY.load(Ordering::Acquire) {
        barrier::dsb(barrier::SY);
        UNITS.lock().iter().flatten().for_each(|unit| unit.flush(at, pages));
    }
}

/// Most refused accesses that are told of one look at the queues.
const TOLD_AT_ONCE: usize = 4;

/// Events to tell once `UNITS` is free: a console takes milliseconds for a line, and whoever takes memory from devices waits for `UNITS`.
struct Told {
    events: [[u64; 4]; TOLD_AT_ONCE],
    count: usize,
    most: usize,
}

impl Told {
    fn keep(&mut self, event: [u64; 4]) {
        if self.count < self.most
            && let Some(place) = self.events.get_mut(self.count)
        {
            *place = event;
            self.count += 1;
        }
    }

    fn tell(&self) {
        for event in self.events.iter().take(self.count) {
            let (code, stream) = (EVENT::CODE.read(event[0]), EVENT::STREAM.read(event[0]));
            log::warn!("SMMU: an access of device {stream:#x} to {:#x} refused, event {code:#x}", event[2]);
        }
    }
}

/// Counts what SMMUs have refused since the last time, on this CPU; `so_far` is what was counted before.
pub fn count_refused(so_far: u64, count: impl Fn(Event)) {
    if ANY.load(Ordering::Acquire) {
        let most = TOLD.saturating_sub(so_far) as usize;
        let mut told = Told { events: [[0; 4]; TOLD_AT_ONCE], count: 0, most };
        let refused: u64 = UNITS.lock().iter().flatten().map(|unit| unit.drain(&mut told)).sum();
        told.tell();
        (0..refused).for_each(|_| count(Event::DeviceAccessDenied));
    }
}
