//! Every call of the host by the way that a trap takes, with every argument at, below and above its limits: an error with a name or a
//! result, never a stop, and registers that are no result stay as they were.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

mod common;

use common::vms::{Host, PAGE};
use corevisor::abstract_machine::regs::TrapFrame;
use corevisor::abstract_machine::sim::{Trapped, run_as};
use corevisor::abstract_machine::{ExitCode, Worlds};
use corevisor::interface::calls::{MAX_PAGES, MAX_VCPUS, MAX_VMS, VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::{CallError, HostCall, INTERFACE_VERSION};
use corevisor::trap::trap_handler::host_trap_handler;
use corevisor_evidence::{Rng, factor, tell};

const SEED: u64 = 41;
const HVC: u64 = 0x16 << 26 | 1 << 25;

/// x0 to x30 after the host's call.
fn call(host: &Host, immediate: u64, x: [u64; 6]) -> [u64; 31] {
    let mut frame = TrapFrame { x: core::array::from_fn(|n| 0xaaaa_0000 + n as u64), sp: 0 };
    frame.x[..6].copy_from_slice(&x);
    let sim = host.world.sim();
    sim.set_trapped(0, Trapped { esr: HVC | immediate, pc: 0x1000, pstate: 0x5, ..Trapped::default() });
    host_trap_handler(&host.world.core, &mut frame);
    assert_eq!(sim.get_cur_vmid().raw(), 0, "the host is back");
    frame.x
}

fn is_named(x0: u64) -> bool {
    (x0 as i64) >= 0 || CallError::from_x0(x0).is_some()
}

#[test]
fn d7_every_call_with_every_argument_at_its_limits_ends_with_a_result_or_a_named_error() {
    run_as(0);
    let mut host = Host::default();
    host.world.sim().set_script(Box::new(|_| ExitCode::Irq));
    let vms = [host.vm(VM_ORDINARY, 20), host.vm(VM_PROTECTED, 20)];
    vms.iter().for_each(|vm| host.vcpu(*vm, 0));
    let free = host.pages(64);
    let values = [
        0,
        1,
        2,
        31,
        32,
        40,
        41,
        48,
        64,
        PAGE - 1,
        PAGE,
        PAGE + 1,
        MAX_VCPUS - 1,
        MAX_VCPUS,
        MAX_VMS,
        MAX_VMS + 1,
        MAX_PAGES,
        MAX_PAGES + 1,
        free,
        free + 8,
        0x4000_0000,
        0x4020_0000,
        0x0804_0000,
        1 << 39,
        1 << 40,
        1 << 48,
        1 << 52,
        1 << 63,
        u64::MAX - PAGE + 1,
        u64::MAX,
        vms[0],
        vms[1],
        vms[0] | 1 << 16,
        vms[0] | 1 << 32,
    ];
    let rng = &mut Rng::new(SEED);
    let (mut refused, mut calls) = (0, 0);
    for round in 0..60_000 * factor() {
        let function = rng.pick(HostCall::ALL);
        let mut x = [function.function(), 0, 0, 0, 0, 0];
        x[1..].iter_mut().for_each(|x| *x = rng.pick(&values));
        // Most calls are about a VM that there is.
        if rng.below(4) > 0 && function != HostCall::RegisterVm {
            x[1] = rng.pick(&vms);
        }
        // The VMs live for most of the time.
        if function == HostCall::RegisterVm && round % 8 != 0 || function == HostCall::PowerOffVm && round < 50_000 {
            continue;
        }
        let after = call(&host, 0, x);
        calls += 1;
        assert!(is_named(after[0]), "{function:?} {x:x?} gave {:#x}", after[0]);
        assert_eq!(after[4..6], x[4..6], "{function:?}: no result stands there");
        assert!((6..31).all(|n| after[n] == 0xaaaa_0000 + n as u64), "{function:?}");
        if (after[0] as i64) < 0 {
            assert_eq!(after[1..4], x[1..4], "{function:?}: an error changes x0 only");
            refused += 1;
        }
    }
    tell("hypercalls", &[("seed", SEED), ("calls", calls), ("refused", refused)]);
    assert!(refused > 0);
    let violations = host.world.sim().violations_at_rest();
    assert!(violations.is_empty(), "{violations:?}");
    let version = call(&host, 0, [HostCall::CoreVersion.function(), 7, 8, 9, 10, 11]);
    assert_eq!(version[..6], [INTERFACE_VERSION, 7, 8, 9, 10, 11], "the core goes on");
}

#[test]
fn a_call_with_another_immediate_is_another_interface_for_every_call() {
    run_as(0);
    let mut host = Host::default();
    let vm = host.vm(VM_ORDINARY, 20);
    for function in HostCall::ALL {
        let after = call(&host, 1, [function.function(), vm, 0, 0, 0, 0]);
        assert_eq!(after[..3], [CallError::NotSupported.x0(), vm, 0], "{function:?}");
    }
}

#[test]
fn a19_numbers_beside_the_table_are_no_calls() {
    run_as(0);
    let host = Host::default();
    for function in (0..17).chain(0xc600_7ff0..0xc600_8100).chain([u64::MAX, 1 << 32 | 0xc600_8000]) {
        if HostCall::from_function(function).is_none() {
            assert_eq!(call(&host, 0, [function, 1, 2, 3, 4, 5])[..4], [CallError::NotSupported.x0(), 1, 2, 3]);
        }
    }
}
