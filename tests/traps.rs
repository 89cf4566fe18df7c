//! What the host finds after a trap: every exception class, every call at, below and above the limits of its arguments, and
//! the exact EL1 state of an injected exception. Each trap is also compared with the specification.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::Machine;
use corevisor::abstract_machine::addr::{Ipa, Pa, Pfn};
use corevisor::abstract_machine::per_cpu::Event;
use corevisor::abstract_machine::sim::walker::AccessKind;
use corevisor::abstract_machine::sim::{Trapped, canary};
use corevisor::interface::{CORE_UID, HostCall, INTERFACE_VERSION};
use corevisor::memory::mem_manager::Denied;
use corevisor::npt::Level;
use corevisor::spec::world::{Layout, Touched, World};

const RAM: u64 = 0x4000_0000;
const POOL: u64 = 0x4010_0000;
const WINDOW: u64 = 0x0900_0000;
const HOLE: u64 = 0x0a00_0000;
const VBAR: u64 = 0xffff_8000_1000_0000;
const PC: u64 = 0xffff_8000_0000_4444;
const NOT_SUPPORTED: u64 = u64::MAX;
const INVALID_PARAMETER: u64 = u64::MAX - 2;
const HVC: u64 = 0x16;
const SMC: u64 = 0x17;

/// A window, 4 MiB of RAM with the core's pool in it, two CPUs.
fn world() -> World {
    let regions = vec![(WINDOW, 0x1000, false), (RAM, 4 << 20, true)];
    World::new(&Layout { regions, pool: POOL, pool_pages: 16, ia_bits: 40, cpus: 2, smmu: Some(Level::L2) })
}

/// The host's registers at a trap of this class.
fn trapped(class: u64, iss: u64) -> Trapped {
    // SPAN set: PAN stays as it is.
    Trapped {
        esr: class << 26 | 1 << 25 | iss,
        pc: PC,
        pstate: 0x5,
        vbar_el1: VBAR,
        sctlr_el1: 1 << 23,
        ..Trapped::default()
    }
}

const FRAME: [u64; 31] = [0x5555; 31];

#[test]
fn every_exception_class_has_a_decided_outcome() {
    let mut world = world();
    for class in 0..64 {
        let hpfar = RAM + 0x1000;
        let (after, x) = world.trap(0, Trapped { hpfar, ..trapped(class, 0b00_0111) }, FRAME);
        match class {
            // A call with immediate 7 is none of ours; HVC moved the pc already, SMC did not.
            HVC => assert_eq!((after.pc, x[0]), (PC, NOT_SUPPORTED)),
            SMC => assert_eq!((after.pc, x[0]), (PC + 4, NOT_SUPPORTED)),
            0x20 | 0x24 => assert_eq!((after.pc, x), (PC, FRAME), "mapped, and tried again"),
            _ => {
                assert_eq!((after.pc, after.esr_el1, after.elr_el1), (VBAR + 0x200, 1 << 25, PC), "class {class:#x}");
                assert_eq!((after.spsr_el1, after.pstate, x), (0x5, 0x3c5, FRAME), "class {class:#x}");
            }
        }
        world.check();
    }
    assert_eq!(world.sim().counted(Event::HostUndefined), 60);
}

#[test]
fn a23_an_serror_of_the_host_goes_back_to_it_and_nothing_else_changes() {
    let mut world = world();
    for n in 0..40 {
        let before = trapped(0x2f, n);
        let after = world.serror(1, before);
        assert_eq!(after, Trapped { serror: Some(0xbe00_0000 | n), ..before });
        world.check();
    }
    assert_eq!(world.sim().counted(Event::HostSError), 40);
}

#[test]
fn every_fault_status_of_an_abort_has_a_decided_outcome() {
    let mut world = world();
    for (class, fsc) in [0x20, 0x24].into_iter().flat_map(|class| (0..64).map(move |fsc| (class, fsc))) {
        let (after, _) = world.trap(0, Trapped { hpfar: RAM, ..trapped(class, fsc) }, FRAME);
        // Address size, translation, access flag, translation at level -1: the address is known and the host's.
        let served = fsc <= 0b00_1011 || fsc == 0b10_1011;
        assert_eq!(after.pc == PC, served, "class {class:#x} status {fsc:#b}");
        world.check();
    }
}

/// How the host's state must look after a refused access.
#[test]
fn a22_d9_a_refused_access_is_an_abort_in_exactly_the_state_that_the_cpu_would_enter() {
    let (read, write, fetch) = (AccessKind::Read, AccessKind::Write, AccessKind::Execute);
    // State before, access, ESR_EL1, vector, state after. External aborts, but for data of the kernel: alignment faults, for which it has fix-ups.
    let cases = [
        (0x0000_0000, read, 0x9200_0010, 0x400, 0x0000_03c5),
        (0x0000_0000, write, 0x9200_0050, 0x400, 0x0000_03c5),
        (0x0000_0000, fetch, 0x8200_0010, 0x400, 0x0000_03c5),
        (0x0000_0004, read, 0x9600_0021, 0x000, 0x0000_03c5),
        (0x0000_0004, fetch, 0x8600_0010, 0x000, 0x0000_03c5),
        (0x0000_0005, read, 0x9600_0021, 0x200, 0x0000_03c5),
        (0x0000_0005, write, 0x9600_0061, 0x200, 0x0000_03c5),
        (0x0000_0005, fetch, 0x8600_0010, 0x200, 0x0000_03c5),
        // AArch32 user mode, Thumb with IT bits, SS and IL: only the flags go on.
        (0xf230_ae70, read, 0x9200_0010, 0x600, 0xf000_03c5),
        (0x0000_0010, fetch, 0x8200_0010, 0x600, 0x0000_03c5),
        // Flags, DIT and PAN go on; UAO, SS, IL, SSBS, BTYPE, TCO do not.
        (0xf3f0_1fc5, read, 0x9600_0021, 0x200, 0xf140_03c5),
    ];
    for (pstate, kind, esr_el1, vector, after_pstate) in cases {
        let mut world = world();
        let before = Trapped { pstate, pc: PC, vbar_el1: VBAR, sctlr_el1: 1 << 23, ..Trapped::default() };
        world.sim().set_trapped(1, before);
        let fault = world.sim().host_access(1, Ipa::new(POOL + 0x123), kind).unwrap_err();
        world.sim().take_abort(1, Ipa::new(POOL + 0x123), 0xffff_1234_5678_9123, kind, fault);
        let before = world.sim().trapped(1);
        let (after, x) = world.trap(1, before, FRAME);
        let expected = Trapped {
            pc: VBAR + vector,
            pstate: after_pstate,
            esr_el1,
            far_el1: 0xffff_1234_5678_9123,
            elr_el1: PC,
            spsr_el1: pstate,
            ..before
        };
        assert_eq!((after, x), (expected, FRAME), "pstate {pstate:#x} {kind:?}");
        assert_eq!(world.sim().counted(Event::HostAccessDenied), 1);
        world.check();
    }
}

#[test]
fn a22_a_refused_access_of_the_hosts_kernel_is_one_that_it_can_fix_up_and_a_refused_walk_is_not() {
    // ESR_EL2's status, state before, ESR_EL1. The page is the core's.
    for (iss, pstate, esr_el1) in [
        (0b00_0111, 0x5, 0x9600_0021),
        (1 << 6 | 0b00_1111, 0x5, 0x9600_0061),
        (0b10_1011, 0x5, 0x9600_0021),
        // A walk of its tables, an external abort of its own, whatever that was.
        (1 << 7 | 0b00_0111, 0x5, 0x9600_0010),
        (0b01_0000, 0x5, 0x9600_0010),
        (0b11_0000, 0x5, 0x9600_0010),
        // A process.
        (0b00_0111, 0x0, 0x9200_0010),
        (1 << 7 | 0b00_0111, 0x0, 0x9200_0010),
        (0b00_0111, 0x10, 0x9200_0010),
    ] {
        let mut world = world();
        let (after, _) = world.trap(0, Trapped { hpfar: POOL, pstate, ..trapped(0x24, iss) }, FRAME);
        assert_eq!(after.esr_el1, esr_el1, "status {iss:#x} from {pstate:#x}");
        world.check();
    }
}

#[test]
fn exception_entry_reads_span_dsbs_and_ata_of_the_host() {
    for (sctlr_el1, expected) in [
        (1 << 23, 0x3c5),
        (0, 1 << 22 | 0x3c5),
        (1 << 44 | 1 << 23, 1 << 12 | 0x3c5),
        (1 << 43 | 1 << 23, 1 << 25 | 0x3c5),
    ] {
        let (after, _) = world().trap(0, Trapped { sctlr_el1, ..trapped(0, 0) }, FRAME);
        assert_eq!(after.pstate, expected, "SCTLR_EL1 {sctlr_el1:#x}");
    }
}

#[test]
fn an_address_that_the_cpu_did_not_report_is_not_reported_to_the_host() {
    // A synchronous external abort (not a stage-2 fault) with FnV.
    let (after, _) = world().trap(0, trapped(0x24, 1 << 10 | 0b01_0000), FRAME);
    assert_eq!(after.esr_el1, 0x9600_0410);
}

#[test]
fn a_vbar_at_the_end_of_the_address_space_stops_nothing() {
    let (after, _) = world().trap(0, Trapped { vbar_el1: !0x7ff, pstate: 0x10, ..trapped(0, 0) }, FRAME);
    assert_eq!(after.pc, !0x7ff + 0x600);
}

#[test]
fn the_host_survives_every_refused_access_and_learns_nothing() {
    let mut world = world();
    let cases = [POOL, POOL + 0xf000, HOLE, 0, 1 << 39, 1 << 40, (1 << 48) - 0x1000, WINDOW + 0x1000, RAM + (4 << 20)];
    for ipa in cases {
        for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Execute] {
            assert_eq!(world.touch(0, Ipa::new(ipa), kind), Touched::Aborted, "{ipa:#x} {kind:?}");
            world.check();
        }
    }
    assert_eq!(world.sim().counted(Event::HostAccessDenied), 27);
    assert_eq!(world.sim().read_ram(Pfn::containing(Pa::new(POOL))), canary(Pfn::containing(Pa::new(POOL))));
    assert_eq!(world.touch(0, Ipa::new(RAM), AccessKind::Execute), Touched::Reached(Pa::new(RAM)));
}

#[test]
fn a14_what_the_device_tree_does_not_describe_is_nobodys() {
    let mut world = world();
    assert_eq!(world.map_page_host(Ipa::new(HOLE)), Err(Denied::NotDescribed));
    assert_eq!(world.touch(0, Ipa::new(HOLE), AccessKind::Read), Touched::Aborted);
    assert!(!world.is_host_memory(Ipa::new(HOLE)));
}

#[test]
fn a_window_is_read_and_written_and_never_executed() {
    let mut world = world();
    assert_eq!(world.touch(0, Ipa::new(WINDOW), AccessKind::Execute), Touched::Aborted);
    assert_eq!(world.touch(1, Ipa::new(WINDOW + 4), AccessKind::Write), Touched::Reached(Pa::new(WINDOW + 4)));
    assert_eq!(world.touch(0, Ipa::new(WINDOW), AccessKind::Execute), Touched::Aborted);
    world.check();
}

#[test]
fn a19_the_calls_of_linuxs_boot_stub_and_all_other_unknown_numbers_are_not_supported() {
    let mut world = world();
    let near =
        HostCall::ALL.iter().flat_map(|call| [call.function() - 1, call.function() + 1, call.function() ^ 1 << 32]);
    let near = near.filter(|number| HostCall::from_function(*number).is_none());
    let far = [6, 7, 8, 0x1000, 0x8400_0000, 0xc400_0003, 0x8600_0000, 0xc600_0000, 0xffff_ffff, 1 << 63, u64::MAX];
    for number in (0..=5).chain(near).chain(far) {
        let answer = world.call(0, HVC, 0, [number, 1, 2, 3]);
        assert_eq!(answer, [NOT_SUPPORTED, 1, 2, 3], "call {number:#x}");
    }
    world.check();
}

#[test]
fn a_hypercall_with_another_immediate_is_another_interface_which_does_not_exist() {
    let mut world = world();
    for immediate in [1, 0x4b48, 0xea1, 0xffff] {
        for call in HostCall::ALL {
            assert_eq!(world.call(0, HVC, immediate, [call.function(), 0, 0, 0])[0], NOT_SUPPORTED);
        }
    }
}

#[test]
fn each_call_answers_as_its_table_says_and_leaves_the_other_registers_alone() {
    let mut world = world();
    assert_eq!(world.call(0, HVC, 0, [HostCall::CoreVersion.function(), 1, 2, 3]), [INTERFACE_VERSION, 1, 2, 3]);
    assert_eq!(world.call(0, HVC, 0, [HostCall::CallUid.function(), 1, 2, 3]), CORE_UID);
    assert_eq!(
        world.call(0, HVC, 0, [HostCall::CallRevision.function(), 9, 2, 3]),
        [INTERFACE_VERSION >> 16, INTERFACE_VERSION & 0xffff, 2, 3]
    );
    let mut x = [7; 31];
    x[0] = HostCall::CallUid.function();
    let (after, x) = world.trap(0, trapped(HVC, 0), x);
    assert_eq!((&x[4..], after.pc, after.pstate), (&[7; 27][..], PC, 0x5));
}

#[test]
fn statistics_are_given_for_every_event_and_for_nothing_else() {
    let mut world = world();
    let call = |world: &mut World, event| world.call(1, HVC, 0, [HostCall::CoreStatistics.function(), event, 8, 9]);
    world.touch(0, Ipa::new(RAM), AccessKind::Read);
    world.touch(1, Ipa::new(HOLE), AccessKind::Read);
    assert_eq!(call(&mut world, Event::HostFaultServed as u64), [0, 1, 8, 9]);
    assert_eq!(call(&mut world, Event::HostAccessDenied as u64), [0, 1, 8, 9]);
    assert_eq!(call(&mut world, Event::HostHypercall as u64), [0, 3, 8, 9]);
    assert_eq!(call(&mut world, Event::COUNT as u64 - 1), [0, 0, 8, 9]);
    for event in [Event::COUNT as u64, 1 << 32, u64::MAX] {
        assert_eq!(call(&mut world, event), [INVALID_PARAMETER, event, 8, 9]);
    }
}

#[test]
fn the_log_is_read_sixteen_bytes_at_a_time_from_any_sequence_number() {
    let mut world = world();
    let text = b"0123456789abcdefXYZ".to_vec();
    world.sim().set_log_text(100, &text);
    world.spec.log = (100, text);
    let call = |world: &mut World, seq| world.call(0, HVC, 0, [HostCall::CoreLogRead.function(), seq, 8, 9]);
    let bytes = |text: &[u8; 8]| u64::from_le_bytes(*text);
    let whole = [0, 116, bytes(b"01234567"), bytes(b"89abcdef")];
    assert_eq!(call(&mut world, 100), whole);
    assert_eq!(call(&mut world, 0), whole, "older than what is there");
    assert_eq!(call(&mut world, 116), [0, 119, bytes(b"XYZ\0\0\0\0\0"), 0]);
    assert_eq!(call(&mut world, 119), [0, 119, 0, 0]);
    assert_eq!(call(&mut world, u64::MAX), [0, 119, 0, 0]);
}

#[test]
fn a11_an_smc_steps_over_itself_and_names_only_the_hosts_memory_as_entry_point() {
    let mut world = world();
    let cpu_on = |world: &mut World, entry| world.call(0, SMC, 0, [0xc400_0003, 1, entry, 5]);
    for (entry, answer) in [
        (RAM, 0),
        (RAM + (4 << 20) - 4, 0),
        (RAM + (4 << 20), -9i64 as u64),
        (POOL, -9i64 as u64),
        (POOL + 16 * 4096, 0),
        (WINDOW, -9i64 as u64),
        (HOLE, -9i64 as u64),
        (u64::MAX, -9i64 as u64),
    ] {
        assert_eq!(cpu_on(&mut world, entry), [answer, 1, entry, 5], "entry {entry:#x}");
    }
    let mut x = FRAME;
    x[0] = 0x8400_0000;
    let (after, x) = world.trap(0, trapped(SMC, 0), x);
    assert_eq!((after.pc, x[0], x[1]), (PC + 4, NOT_SUPPORTED, 0x5555));
    assert_eq!(world.sim().counted(Event::HostSmc), 9);
}

#[test]
fn a_cpu_that_starts_again_finds_its_context_and_nothing_else() {
    let mut world = world();
    let mut x = FRAME;
    x[..4].copy_from_slice(&[0xc400_0001, 0, RAM + 0x80, 0x77]);
    let (after, x) = world.trap(0, Trapped { pstate: 0x6000_0005, ..trapped(SMC, 0) }, x);
    assert_eq!((after.pc, after.pstate, x[0]), (RAM + 0x80, 0x3c5, 0x77));
    assert_eq!(x[1..], [0; 30]);
}

#[test]
fn d1_after_a_failure_on_any_cpu_a_trap_is_stopped_before_anything_is_done() {
    let mut world = world();
    world.sim().halt();
    let call = std::panic::AssertUnwindSafe(|| world.call(0, HVC, 0, [HostCall::CoreVersion.function(), 0, 0, 0]));
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(world.sim().counted(Event::HostHypercall), 0);
    // Whatever the trap is.
    for class in [0x00, 0x16, 0x17, 0x18, 0x20, 0x24] {
        let mut world = self::world();
        world.sim().halt();
        let trapped = Trapped { esr: class << 26 | 1 << 25, pc: 0x1000, pstate: 0x5, ..Trapped::default() };
        let trap = std::panic::AssertUnwindSafe(|| world.trap(0, trapped, std::array::from_fn(|_| 0)));
        let stopped = std::panic::catch_unwind(trap).err().and_then(|panic| panic.downcast::<&str>().ok());
        assert!(stopped.is_some_and(|text| text.contains("the machine is halted")), "class {class:#x}");
    }
}
