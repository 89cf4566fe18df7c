//! The world switch of the simulated machine: that it finds what it is for.
#![forbid(unsafe_code)]

use super::*;
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::PhysRange;

#[test]
fn a_vms_registers_stay_its_own_over_a_world_switch() {
    let sim = Sim::new(1, PhysRange::between(Pa::new(0x8000_0000), Pa::new(0x8000_8000)));
    assert!(sim.adopt_page(Pfn::new(0x4_0000)));
    let shadow = Shadow::new(Pa::new(0x4000_0000));
    let host = ShadowReg::Bank(BankReg::Ttbr0);
    let mut live = Context::EMPTY;
    live.bank[BankReg::Ttbr0 as usize] = 0x1000;
    sim.set_live(0, live);
    sim.set_shadow_ctxt(shadow, ShadowReg::Bank(BankReg::Ttbr0), 0x2000);
    sim.set_script(Box::new(|seen| {
        assert_eq!(seen.bank[BankReg::Ttbr0 as usize], 0x2000);
        seen.bank[BankReg::Ttbr0 as usize] = 0x3000;
        seen.x[0] = 7;
        ExitCode::Trap
    }));
    sim.save_sysregs(ContextAt::Host);
    let mut ctxt = sim.take_shadow_ctxt(shadow);
    sim.restore_sysregs(ContextAt::Vm(&mut ctxt));
    assert_eq!(sim.run_vm(&mut ctxt, |_, code| Some(code)), Some(ExitCode::Trap));
    sim.save_sysregs(ContextAt::Vm(&mut ctxt));
    drop(ctxt);
    sim.restore_sysregs(ContextAt::Host);
    assert_eq!(sim.live(0).get(host), 0x1000);
    assert_eq!((sim.get_shadow_ctxt(shadow, host), sim.get_shadow_ctxt(shadow, ShadowReg::X(0))), (0x3000, 7));
    assert_eq!(sim.switches().len(), 5);
    sim.release_page(Pfn::new(0x4_0000));
    assert!(sim.violations().is_empty());
}

#[test]
fn control_a_context_in_two_hands_is_a_violation() {
    let sim = Sim::new(1, PhysRange::between(Pa::new(0x8000_0000), Pa::new(0x8000_8000)));
    assert!(sim.adopt_page(Pfn::new(0x4_0000)));
    let shadow = Shadow::new(Pa::new(0x4000_0000));
    let ctxt = sim.take_shadow_ctxt(shadow);
    assert_eq!(sim.get_shadow_ctxt(shadow, ShadowReg::Pc), 0);
    drop(ctxt);
    assert_eq!(sim.violations(), ["the context at 0x40000000 is in two hands"]);
}
