//! The registers of one CPU of the simulated machine, and whose they are: those of EL1 by the world switch, those of FP by use.
#![forbid(unsafe_code)]

use crate::abstract_machine::addr::{VcpuId, VmId};
use crate::abstract_machine::shadow::Context;
use crate::abstract_machine::{ContextAt, ExitCode};

/// One CPU's registers, and the vCPU that it runs.
pub(super) struct Registers {
    pub(super) live: Context,
    host: Context,
    /// The host's FP registers are saved, so those in the CPU are the VM's, and do not trap.
    fp_saved: bool,
    /// SVE streaming mode: of the CPU, and of the host while a VM runs.
    streaming: (bool, bool),
    /// A step of the VM that waits for its FP registers.
    waits: Option<(Context, ExitCode)>,
    pub(super) vm: VmId,
    pub(super) vcpu: VcpuId,
}

impl Registers {
    pub(super) const fn new(cpu: u16) -> Self {
        Self {
            live: Context::EMPTY,
            host: Context::EMPTY,
            fp_saved: false,
            streaming: (false, false),
            waits: None,
            vm: VmId::HOST,
            vcpu: VcpuId::new(cpu),
        }
    }

    /// The registers, and the context that they are saved to or loaded from.
    pub(super) fn pair(&mut self, at: ContextAt<'_>, copy: impl FnOnce(&mut Context, &mut Context)) {
        match at {
            ContextAt::Host => copy(&mut self.live, &mut self.host),
            ContextAt::Vm(ctxt) => copy(&mut self.live, ctxt),
        }
    }

    /// What the VM finds in its registers. While FP traps these are its own, as they will be after the trap.
    pub(super) fn of_vm(&self, ctxt: &Context) -> Context {
        let fp = if self.fp_saved { &self.live } else { ctxt };
        Context { bank: self.live.bank, vgic: self.live.vgic, q: fp.q, fp_control: fp.fp_control, ..*ctxt }
    }

    /// The VM's step that waited for its FP registers, if it has them now.
    pub(super) fn waited(&mut self, ctxt: &mut Context) -> Option<ExitCode> {
        let (after, code) = self.waits.take().filter(|_| self.fp_saved)?;
        let before = *ctxt;
        self.done(ctxt, &after, &before);
        Some(code)
    }

    /// The VM has done a step, from `before` to `after`, and leaves by `code`. One that changes FP registers traps first while these are the host's.
    pub(super) fn step(&mut self, ctxt: &mut Context, before: &Context, after: &Context, code: ExitCode) -> ExitCode {
        const FP_TRAP: u64 = 0x07 << 26 | 1 << 25;
        if !self.fp_saved && (after.q, after.fp_control) != (before.q, before.fp_control) {
            self.waits = Some((*after, code));
            ctxt.syndrome[0] = FP_TRAP;
            return ExitCode::Trap;
        }
        self.done(ctxt, after, before);
        code
    }

    /// Of FP the VM wrote what is not as `before` any more.
    fn done(&mut self, ctxt: &mut Context, after: &Context, before: &Context) {
        let live = &mut self.live;
        (live.bank, live.vgic) = (after.bank, after.vgic);
        let fp = |c: &Context| c.q.into_iter().chain(c.fp_control);
        let places = live.q.iter_mut().chain(&mut live.fp_control);
        let written = places.zip(fp(before).zip(fp(after))).filter(|(_, (before, after))| before != after);
        written.for_each(|(place, (_, after))| *place = after);
        (ctxt.x, ctxt.pc, ctxt.pstate, ctxt.syndrome) = (after.x, after.pc, after.pstate, after.syndrome);
    }

    pub(super) fn fp_save(&mut self, at: ContextAt<'_>) {
        if let ContextAt::Host = at {
            // A VM does not run in streaming mode.
            self.streaming.1 = core::mem::take(&mut self.streaming.0);
            self.fp_saved = self.streaming.1;
        }
        if self.fp_saved {
            self.pair(at, |live, saved| (saved.q, saved.fp_control) = (live.q, live.fp_control));
        }
    }

    pub(super) fn fp_restore(&mut self, at: ContextAt<'_>) {
        let saved = self.fp_saved;
        if let ContextAt::Host = at {
            (self.fp_saved, self.streaming) = (false, (self.streaming.1, false));
        }
        if saved {
            self.pair(at, |live, saved| (live.q, live.fp_control) = (saved.q, saved.fp_control));
        }
    }

    pub(super) fn fp_open(&mut self, ctxt: &Context) -> bool {
        let first = !core::mem::replace(&mut self.fp_saved, true);
        if first {
            (self.host.q, self.host.fp_control) = (self.live.q, self.live.fp_control);
            (self.live.q, self.live.fp_control) = (ctxt.q, ctxt.fp_control);
        }
        first
    }

    pub(super) const fn is_streaming(&self) -> bool {
        self.streaming.0
    }

    pub(super) const fn set_streaming(&mut self, streaming: bool) {
        self.streaming.0 = streaming;
    }
}
