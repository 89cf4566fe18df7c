//! The world switch on the real CPU: [`Worlds`]. Which registers go where is in `bank`, `fpsimd`, `traps` and `vgic`; the jump itself in
//! boot/switch.S. Source: Arm ARM (DDI 0487) D24.2 (registers of EL2), D11.2 (timers); K §3.7.

use core::ffi::c_void;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTHCTL_EL2, CNTPCT_EL0, CNTVOFF_EL2, ELR_EL2, Readable, SPSR_EL2, Writeable};

use super::super::addr::{CpuId, Ipa, PAGE_SIZE, Pa, VcpuId, VmId};
use super::super::regs::{FaultKind, Syndrome, ipa_of_hpfar};
use super::super::shadow::{Context, Shadow, ShadowReg};
use super::super::shape::Shape;
use super::super::world::{ContextAt, ExitCode, VgicInfo, VirtualLines, Worlds};
use super::{Cpu, bank, entropy, fpsimd, serving, sysreg, this_for_good, translate_stage1, traps, vgic};

unsafe extern "C" {
    fn run_vm(
        context: *mut Context,
        exit: *mut c_void,
        left: extern "C" fn(ExitCode, &mut Context, *mut c_void) -> bool,
    );
}

/// What is asked when a vCPU leaves, and why it stays away.
struct Exit<F, R> {
    ask: F,
    result: Option<R>,
}

/// A vCPU left, from boot/switch.S: whether it stays away.
extern "C" fn left<R, F: FnMut(&mut Context, ExitCode) -> Option<R>>(
    code: ExitCode,
    context: &mut Context,
    exit: *mut c_void,
) -> bool {
    // SAFETY: what `Cpu::run_vm` gave to boot/switch.S, which it does not use meanwhile.
    let exit = unsafe { &mut *exit.cast::<Exit<F, R>>() };
    let Some(result) = (exit.ask)(context, code) else { return false };
    exit.result = Some(result);
    true
}

#[cold]
#[inline(never)]
fn no_context(page: Pa) -> ! {
    panic!("no shadow context at {page}")
}

impl Worlds for Cpu {
    type Taken<'m> = &'m mut Context;

    #[inline(always)]
    fn take_shadow_ctxt(&self, shadow: Shadow) -> &mut Context {
        let page = shadow.page();
        if !(super::is_adopted(page) && page.is_aligned(PAGE_SIZE)) {
            no_context(page);
        }
        // SAFETY: a page of the core's own, mapped at its physical address. A vCPU that is ACTIVE is its CPU's alone, one that is
        // not is reached under its VM's lock (layer Vm), so nobody else has this context.
        unsafe { &mut *(page.raw() as *mut Context) }
    }

    #[inline(always)]
    fn stop_host_recording(&self) {
        serving(|world| {
            if world.features.parts.seldom() {
                traps::stop_recording(world);
            }
        });
    }

    #[inline(always)]
    fn resume_host_recording(&self) {
        serving(|world| {
            if world.features.parts.seldom() {
                traps::resume_recording(world);
            }
        });
    }

    #[inline(always)]
    fn save_sysregs(&self, at: ContextAt<'_>) {
        serving(|world| match at {
            ContextAt::Host => {
                world.host.pc = ELR_EL2.get();
                world.host.pstate = SPSR_EL2.get();
                bank::save(&mut world.host, &world.features, true);
            }
            ContextAt::Vm(ctxt) => bank::save(ctxt, &world.features, false),
        });
    }

    #[inline(always)]
    fn restore_sysregs(&self, at: ContextAt<'_>) {
        serving(|world| match at {
            ContextAt::Host => {
                ELR_EL2.set(world.host.pc);
                SPSR_EL2.set(world.host.pstate);
                bank::restore(&world.host, &world.features, true);
            }
            ContextAt::Vm(ctxt) => bank::restore(ctxt, &world.features, false),
        });
    }

    #[inline(always)]
    fn fpsimd_save_state(&self, at: ContextAt<'_>) {
        serving(|world| match at {
            ContextAt::Host => fpsimd::save_host(world),
            ContextAt::Vm(ctxt) => fpsimd::save_vm(world, ctxt),
        });
    }

    #[inline(always)]
    fn fpsimd_restore_state(&self, at: ContextAt<'_>) {
        serving(|world| match at {
            ContextAt::Host => fpsimd::restore_host(world),
            ContextAt::Vm(ctxt) => fpsimd::restore_vm(world, ctxt),
        });
    }

    fn fpsimd_open(&self, ctxt: &Context) -> bool {
        serving(|world| fpsimd::open(world, ctxt))
    }

    fn activate_traps(&self, lines: VirtualLines) {
        serving(|world| traps::activate(world, lines));
    }

    fn deactivate_traps(&self) {
        serving(|world| traps::deactivate(world));
    }

    fn timer_enable_traps(&self, cntvoff: u64) {
        CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCTEN::SET);
        CNTVOFF_EL2.set(cntvoff);
    }

    fn timer_disable_traps(&self) {
        CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCEN::SET + CNTHCTL_EL2::EL1PCTEN::SET);
        CNTVOFF_EL2.set(0);
    }

    #[inline(always)]
    fn host_el2_restore_state(&self) {
        serving(|world| traps::set_host_stage2(world));
    }

    fn vm_el2_restore_state(&self, vttbr: u64, ia_bits: u32, flush: bool) {
        serving(|world| traps::set_vm_stage2(world, vttbr, Shape::again(ia_bits), flush));
    }

    fn vgic_save_state(&self, ctxt: &mut Context, lrs: usize) {
        serving(|world| vgic::save(world, ctxt, lrs));
    }

    fn vgic_restore_state(&self, ctxt: &Context, lrs: usize) {
        serving(|world| vgic::restore(world, ctxt, lrs));
    }

    fn vgic_info(&self) -> VgicInfo {
        serving(|world| world.vgic)
    }

    fn list_register(&self, n: usize) -> u64 {
        vgic::list_register(n)
    }

    fn set_list_register(&self, n: usize, value: u64) {
        serving(|world| vgic::set_list_register(world, n, value));
    }

    fn cntv_ctl(&self) -> u64 {
        sysreg::CntvCtl::get().get()
    }

    fn set_cntv_ctl(&self, value: u64) {
        sysreg::CntvCtl::set(value);
    }

    fn kick(&self, cpu: CpuId, sgi: u8) {
        let target = super::all().get(cpu.index()).map(|cpu| cpu.mpidr);
        target.into_iter().for_each(|mpidr| vgic::kick(mpidr, sgi));
    }

    fn take_kick(&self, sgi: u8) -> bool {
        vgic::take_kick(sgi)
    }

    fn interrupt_waits(&self) -> bool {
        vgic::interrupt_waits()
    }

    fn set_per_cpu(&self, vm: VmId, vcpu: VcpuId) {
        serving(|world| (world.vm, world.vcpu) = (vm, vcpu));
    }

    fn get_cur_vmid(&self) -> VmId {
        serving(|world| world.vm)
    }

    fn get_cur_vcpuid(&self) -> VcpuId {
        serving(|world| world.vcpu)
    }

    fn get_cur_cpu(&self) -> CpuId {
        this_for_good().map_or(CpuId::new(0), |cpu| cpu.cpu)
    }

    fn run_vm<R, F: FnMut(&mut Context, ExitCode) -> Option<R>>(&self, ctxt: &mut Context, ask: F) -> Option<R> {
        let mut exit = Exit { ask, result: None };
        // SAFETY: EL1 and stage 2 are the VM's (the layers' order, `world`), so it reaches nothing of the core; registers of the
        // core come back as a call leaves them. `left` is of the same `Exit` as its argument, and gets no other codes than ExitCode's.
        unsafe { run_vm(ctxt, (&raw mut exit).cast(), left::<R, F>) };
        exit.result
    }

    fn fault_ipa(&self, ctxt: &Context) -> Option<Ipa> {
        let syndrome = Syndrome::new(ctxt.get(ShadowReg::EsrEl2));
        if syndrome.is_stage1_walk() || syndrome.fault_kind() != FaultKind::Permission {
            return Some(ipa_of_hpfar(ctxt.get(ShadowReg::HpfarEl2)));
        }
        let far = ctxt.get(ShadowReg::FarEl2);
        translate_stage1(far).map(|page| Ipa::new(page.addr().raw()))
    }

    fn counter(&self) -> u64 {
        barrier::isb(barrier::SY);
        CNTPCT_EL0.get()
    }

    fn entropy(&self) -> Option<[u64; 4]> {
        entropy::draw()
    }
}
