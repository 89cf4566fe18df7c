//! Tests of the PSCI server. `calls`: every call and every bad argument; `hotplug`: CPUs as threads; `model`: all
//! states and interleavings of a small machine.

mod calls;
mod fake;
mod hotplug;
mod model;
mod set_up;

use crate::abstract_machine::addr::{CpuId, Ipa, Pa};
use crate::platform::psci::{Below, PsciOutcome, SetUp, SmcCall, SmcFirmware};
use fake::Fake;

type Psci = super::Psci<Fake, 8>;

const CORE_ENTRY: u64 = 0x4020_0000;
const ENTRY: u64 = 0x8000_0000;

fn is_ram(ipa: Ipa) -> bool {
    (0x8000_0000..0x9000_0000).contains(&ipa.raw())
}

fn smc_board(fake: Fake, cpus: usize) -> Psci {
    let below = Below::Smc(SmcFirmware::probe(&fake, Pa::new(CORE_ENTRY)).unwrap());
    fake.take_calls();
    board(fake, below, cpus)
}

fn board(fake: Fake, below: Below, cpus: usize) -> Psci {
    board_with(fake, below, SetUp::default(), cpus)
}

fn board_with(fake: Fake, below: Below, set_up: SetUp, cpus: usize) -> Psci {
    // Bits 31, 30 and 24 of MPIDR_EL1 are not affinity.
    let psci = Psci::new(fake, below, set_up, 0xc100_0000);
    for cpu in 1..cpus {
        assert_eq!(psci.add_cpu(0x8000_0000 | cpu as u64), Ok(CpuId::new(cpu as u16)));
    }
    psci
}

fn call(psci: &Psci, cpu: u16, function: u32, args: [u64; 3]) -> PsciOutcome {
    fake::THIS_CPU.set(cpu.into());
    // The upper half of x0 is not part of the function number.
    psci.call(
        CpuId::new(cpu),
        SmcCall::new(0xffff_0000_0000_0000 | u64::from(function), args[0], args[1], args[2]),
        is_ram,
    )
}

/// The signed result of a call that returns.
fn result(psci: &Psci, cpu: u16, function: u32, args: [u64; 3]) -> i64 {
    match call(psci, cpu, function, args) {
        PsciOutcome::Return(x0) => x0 as i64,
        other => panic!("{other:?}"),
    }
}
