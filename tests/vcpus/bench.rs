//! A VM with one vCPU that does what a test says, and random traps of it.

use std::sync::{Arc, Mutex};

use crate::common::vms::{Host, PAGE, TestManifest, image, key};
use corevisor::abstract_machine::addr::{Pa, Pfn};
use corevisor::abstract_machine::shadow::{BankReg, Context};
use corevisor::abstract_machine::sim::{Trapped, run_as};
use corevisor::abstract_machine::{ExitCode, Machine};
use corevisor::interface::calls::{MAP_READ_ONLY, VM_PROTECTED};
use corevisor::interface::guest::{psci, trng};
use corevisor::interface::mailbox::{ExitReason, Mailbox, START_PSTATE};
use corevisor::interface::{CallError, HostCall};
use corevisor::spec::vcpu::Vcpu;
use corevisor::trap::trap_handler::host_vcpu_run_handler;
use corevisor_evidence::Rng;

pub const ENTRY: u64 = 0x4020_0000;
pub const TREE: u64 = 0x4000_0000;
pub const RELEASED: u64 = 0x4300_0000;
/// Where an ordinary VM has a page that it may only read, and a protected one nothing.
pub const FLASH: u64 = 0x0400_0000;
/// A tag that all secrets of a VM carry, so that none is met by chance.
pub const SECRET: u64 = 0x5ec7 << 48;

/// A step of a VM: what it does with its registers, and why it leaves.
pub type Step = Box<dyn FnMut(&mut Context) -> ExitCode + Send>;

/// A VM with one vCPU, and what it does.
pub struct Bench {
    pub host: Host,
    pub vm: u64,
    pub mailbox: u64,
    pub mailboxes: Vec<u64>,
    pub steps: Arc<Mutex<Vec<Step>>>,
    pub seen: Arc<Mutex<Vec<Context>>>,
}

impl Bench {
    pub fn new(kind: u64) -> Self {
        Self::with_vcpus(kind, 1)
    }

    pub fn with_vcpus(kind: u64, vcpus: u64) -> Self {
        run_as(0);
        let mut host = Host::default();
        let vm = host.vm(kind, 30);
        let mailboxes: Vec<_> = (0..vcpus).map(|_| host.pages(1)).collect();
        let mailbox = mailboxes[0];
        for (n, page) in (0..).zip(&mailboxes) {
            host.done(HostCall::RegisterVcpu, &[vm, n, *page]).unwrap();
        }
        if kind == VM_PROTECTED {
            let images = [image(ENTRY, 2 * PAGE as usize)];
            host.load(vm, &images);
            let manifest = TestManifest::of(&images, ENTRY, TREE).sign(&key(1));
            host.verify(vm, &manifest).unwrap();
        } else {
            let pages = host.pages(3);
            host.done(HostCall::VerifyVm, &[vm]).unwrap();
            assert_eq!(host.call(HostCall::MapMemory, &[vm, ENTRY, pages, 2, 0]).unwrap()[0], 2);
            assert_eq!(host.call(HostCall::MapMemory, &[vm, FLASH, pages + 2 * PAGE, 1, MAP_READ_ONLY]).unwrap()[0], 1);
        }
        let bench = Self { host, vm, mailbox, mailboxes, steps: Arc::default(), seen: Arc::default() };
        let (steps, seen) = (bench.steps.clone(), bench.seen.clone());
        bench.host.world.sim().set_script(Box::new(move |context| {
            seen.lock().unwrap().push(*context);
            let mut steps = steps.lock().unwrap();
            if steps.is_empty() { ExitCode::Irq } else { steps.remove(0)(context) }
        }));
        bench.write_mailbox(&(0..512).map(|n| (n, 0)).collect::<Vec<_>>());
        bench.write_mailbox(&[(word_of("pc"), ENTRY), (word_of("pstate"), START_PSTATE), (word_of("x0"), TREE)]);
        bench
    }

    /// One that has started and left by an interrupt.
    pub fn started(kind: u64) -> Self {
        let bench = Self::new(kind);
        assert_eq!(bench.run(), Ok(ExitReason::Irq));
        bench.take_seen();
        bench
    }

    pub fn write_mailbox(&self, words: &[(usize, u64)]) {
        for (word, value) in words {
            self.host.world.sim().write_page(Pfn::containing(Pa::new(self.mailbox)), *word, &[*value]);
        }
    }

    pub fn mailbox(&self) -> [u64; 512] {
        self.mailbox_of(0)
    }

    pub fn mailbox_of(&self, vcpu: usize) -> [u64; 512] {
        let mut words = [0; 512];
        self.host.world.sim().read_page(Pfn::containing(Pa::new(self.mailboxes[vcpu])), 0, &mut words);
        words
    }

    pub fn next(&self, step: impl FnMut(&mut Context) -> ExitCode + Send + 'static) {
        self.steps.lock().unwrap().push(Box::new(step));
    }

    pub fn run(&self) -> Result<ExitReason, CallError> {
        let x0 = host_vcpu_run_handler(&self.host.world.core, self.vm, 0);
        ExitReason::from_x0(x0).ok_or_else(|| CallError::from_x0(x0).unwrap())
    }

    /// The contexts with which the VM was run since the last time.
    pub fn take_seen(&self) -> Vec<Context> {
        core::mem::take(&mut self.seen.lock().unwrap())
    }

    /// The VM traps with `esr`; the reason, and the contexts with which it ran on in this call.
    pub fn trap(&self, esr: u64, set: impl Fn(&mut Context) + Send + 'static) -> (ExitReason, Vec<Context>) {
        self.next(move |context| {
            context.syndrome = [esr, 0, 0];
            set(context);
            ExitCode::Trap
        });
        let reason = self.run().unwrap();
        (reason, self.take_seen().split_off(1))
    }
}

/// Word of a field of the mailbox.
pub fn word_of(field: &str) -> usize {
    (match field {
        "entry_flags" => core::mem::offset_of!(Mailbox, entry_flags),
        "pc" => core::mem::offset_of!(Mailbox, pc),
        "pstate" => core::mem::offset_of!(Mailbox, pstate),
        "x0" => core::mem::offset_of!(Mailbox, x0),
        "x" => core::mem::offset_of!(Mailbox, x),
        "esr" => core::mem::offset_of!(Mailbox, esr),
        "ipa" => core::mem::offset_of!(Mailbox, ipa),
        "lr_count" => core::mem::offset_of!(Mailbox, lr_count),
        "lr" => core::mem::offset_of!(Mailbox, lr),
        "vgic_hcr" => core::mem::offset_of!(Mailbox, vgic_hcr),
        "cntv_ctl" => core::mem::offset_of!(Mailbox, cntv_ctl),
        "exits" => core::mem::offset_of!(Mailbox, exits),
        "powered" => core::mem::offset_of!(Mailbox, powered),
        "direct" => core::mem::offset_of!(Mailbox, direct),
        "sgis" => core::mem::offset_of!(Mailbox, sgis),
        _ => panic!("{field}"),
    }) / 8
}

/// The specification's view of a context.
pub fn view(c: &Context) -> Vcpu {
    let bank = |reg: BankReg| c.bank[reg as usize];
    let regs = Trapped {
        esr: c.syndrome[0],
        far: c.syndrome[1],
        serror: None,
        hpfar: (c.syndrome[2] & 0xff_ffff_fff0) << 8,
        pc: c.pc,
        pstate: c.pstate,
        elr_el1: bank(BankReg::ElrEl1),
        spsr_el1: bank(BankReg::SpsrEl1),
        esr_el1: bank(BankReg::Esr),
        far_el1: bank(BankReg::Far),
        sctlr_el1: bank(BankReg::Sctlr),
        vbar_el1: bank(BankReg::Vbar),
    };
    Vcpu { x: core::array::from_fn(|n| c.x[n]), regs }
}

/// Every register a secret of its own, except those that decide.
pub fn fill(rng: &mut Rng, c: &mut Context) {
    let mut secret = || SECRET | rng.next() >> 16;
    c.x[..31].iter_mut().for_each(|x| *x = secret());
    c.bank.iter_mut().for_each(|x| *x = secret());
    c.q.iter_mut().for_each(|x| *x = secret());
    c.fp_control.iter_mut().for_each(|x| *x = secret());
    c.pc = secret() & !3;
    c.bank[BankReg::CntvCtl as usize] = 0;
    c.bank[BankReg::CntvCval as usize] = 0;
}

/// A random trap that changes nothing but the vCPU.
pub fn random_trap(rng: &mut Rng, c: &mut Context) {
    fill(rng, c);
    c.pstate = rng.pick(&[0x0, 0x4, 0x5, 0x3c5, 0x6000_0000, 0x8140_0005, 0x10]);
    let class = match rng.below(3) {
        0 => rng.below(64),
        _ => rng.pick(&[0x01, 0x16, 0x17, 0x18, 0x18, 0x20, 0x24, 0x24, 0x24]),
    };
    let iss = match class {
        0x16 | 0x17 => rng.pick(&[0, 0, 0, 0, 7]),
        0x18 => random_sysreg(rng) | rng.below(32) << 5 | rng.below(2),
        _ => rng.next() & 0x1ff_ffff,
    };
    // Faults that are served by looking at a table are as common as the others together.
    let fsc = if matches!(class, 0x20 | 0x24) && rng.below(4) > 0 { iss & !0x3f | 0b00_0111 } else { iss };
    let page =
        rng.pick(&[0x0900_0000, FLASH, ENTRY, ENTRY + PAGE, RELEASED, 0x3f_ffff_f000, 0x40_0000_0000, 0x3fff_f000]);
    c.syndrome = [class << 26 | 1 << 25 | fsc, SECRET | rng.next() & 0xfff | rng.below(16) << 12, page >> 8];
    if matches!(class, 0x16 | 0x17) {
        let calls = [
            psci::VERSION,
            psci::FEATURES,
            psci::MIGRATE_INFO_TYPE,
            psci::CPU_SUSPEND,
            0x8000_0000,
            0x8000_0001,
            0x8000_8000,
            0x8000_3fff,
            0x8600_ff01,
            0x8600_0000,
            0xc600_0002,
            0xc600_0003,
            0xc600_0004,
            0xc600_0005,
            trng::VERSION,
            trng::FEATURES,
            trng::GET_UUID,
            trng::RND32,
            trng::RND64,
            rng.next(),
        ];
        c.x[0] = rng.pick(&calls);
        let asked = rng.pick(&calls);
        let bits = rng.below(200) | rng.below(2) << 32;
        c.x[1] = rng.pick(&[asked, RELEASED, RELEASED + 8, bits]);
    }
}

fn random_sysreg(rng: &mut Rng) -> u64 {
    let iss =
        |op0: u64, op1: u64, crn: u64, crm: u64, op2: u64| op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1;
    match rng.below(8) {
        0 => iss(3, 0, 0, 1 + rng.below(7), rng.below(8)),
        1 => iss(3, 0, 12, 11, 5 + rng.below(3)),
        2 => iss(3, 3, 14, 2, rng.below(3)),
        3 => iss(3, 3, rng.pick(&[9, 14]), 8 + rng.below(8), rng.below(8)),
        4 => iss(2, rng.below(4), rng.below(3), rng.below(16), rng.below(8)),
        5 => iss(1, 0, 7, rng.pick(&[6, 10, 14]), 2),
        6 => iss(3, 0, 1, 0, 1),
        _ => rng.next() & 0x3f_fc1e,
    }
}

/// None of a VM's secrets stands in what the host can read, but those that the exit shows.
pub fn assert_none_shown(words: &[u64; 512], allowed: &[u64], said: &str) {
    for (n, word) in words.iter().enumerate() {
        assert!(word >> 48 != 0x5ec7 || allowed.contains(word), "{said}: word {n} of the mailbox holds {word:#x}");
    }
}
