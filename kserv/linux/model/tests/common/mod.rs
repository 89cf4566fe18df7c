//! The driver's C part, as far as the model needs one: a VM in memory of the right size, a cache of core registers, a mailbox for each vCPU.
#![allow(dead_code, missing_docs)]

pub mod its_guest;
pub mod steps;

use std::alloc::{Layout, alloc_zeroed, dealloc};

use corevisor_interface::mailbox::{ExitReason, Mailbox};
use kserv_linux_model::access::kserv_answer;
use kserv_linux_model::its::*;
use kserv_linux_model::*;
use kserv_model::kvm::{Machine, NOT_DIRECT};

pub const GET_REG_SIZE: u64 = 0xf << 52;
pub const START: u64 = 1_000_000;
/// VMCR with a priority mask that lets everything through.
pub const PMR_OPEN: u64 = 0xf8 << 24;

/// A machine like QEMU's `max` with GICv3, or its Cortex-A72 with GICv2.
pub fn machine(gic: u64) -> Machine {
    let a72 = [0x0000_2222, 0, 0x1030_5106, 0x1_1120, 0, 0, 0x1124, 0, 0];
    let max = [0x1101_0010_1111_0022, 0x21, 0x10_1006, 0x1221_1111_0021_2120, 0x0011_0111_0110_1402, 0, 0x1125, 0, 0];
    Machine {
        list_registers: 4,
        gic,
        midr: 0x410f_d083,
        revidr: 7,
        aidr: 0,
        ctr: 0x8444_c004,
        clidr: 0x0a20_0023,
        id: if gic == 3 { max } else { a72 },
        direct: NOT_DIRECT,
    }
}

pub struct Driver {
    vm: *mut Vm,
    layout: Layout,
    pub cores: Vec<[u64; 256]>,
    pub mailboxes: Vec<Mailbox>,
    pub kicks: u32,
    pub now: u64,
}

impl Driver {
    /// A VM with `vcpus` vCPUs, the first one on. `gic`: version of the interrupt controller in the kernel, initialised at QEMU's addresses; 0: none.
    pub fn new(machine_gic: u64, gic: u32, vcpus: u32) -> Self {
        Self::make(machine(machine_gic), gic, vcpus, false)
    }

    /// One with GICv3 and a translation service at QEMU's address.
    pub fn with_its(vcpus: u32) -> Self {
        Self::make(machine(3), 3, vcpus, true)
    }

    /// On a machine whose driver lets the core deliver interrupts by itself.
    pub fn direct(machine_gic: u64, gic: u32, vcpus: u32, direct: u64) -> Self {
        Self::make(Machine { direct, ..machine(machine_gic) }, gic, vcpus, false)
    }

    fn make(machine: Machine, gic: u32, vcpus: u32, its: bool) -> Self {
        let mut driver = Self::on(&machine);
        if gic != 0 {
            assert_eq!(kserv_gic_create(driver.vm(), gic), 0);
        }
        if its {
            assert_eq!(kserv_its_create(driver.vm()), 0);
            assert_eq!(driver.set_its(0, 4, 0x808_0000), 0);
        }
        for vcpu in 0..vcpus {
            assert_eq!(kserv_vcpu_create(driver.vm(), vcpu), 0);
            assert_eq!(driver.init(vcpu, vcpu != 0), 0);
        }
        match gic {
            2 => {
                assert_eq!(driver.set_gic(0, 0, 0x800_0000), 0);
                assert_eq!(driver.set_gic(0, 1, 0x801_0000), 0);
            }
            3 => {
                assert_eq!(driver.set_gic(0, 2, 0x800_0000), 0);
                assert_eq!(driver.set_gic(0, 5, u64::from(vcpus) << 52 | 0x80a_0000), 0);
            }
            _ => {}
        }
        if gic != 0 {
            assert_eq!(driver.set_gic(3, 0, 288), 0);
            assert_eq!(driver.set_gic(4, 0, 0), 0);
        }
        assert_eq!(kserv_first_run(driver.vm()), 0);
        driver.kicks = 0;
        driver
    }

    /// A VM without anything.
    pub fn bare(machine_gic: u64) -> Self {
        Self::on(&machine(machine_gic))
    }

    fn on(machine: &Machine) -> Self {
        let layout = Layout::from_size_align(kserv_vm_size(), kserv_vm_align()).unwrap();
        // SAFETY: the layout is not empty; the memory is as large as kserv_vm_init wants it.
        let vm = unsafe { alloc_zeroed(layout) }.cast::<Vm>();
        // SAFETY: writable memory of the right size and alignment.
        unsafe { kserv_vm_init(vm, machine, 40, START) };
        Self {
            vm,
            layout,
            cores: vec![[0; 256]; 16],
            mailboxes: vec![Mailbox { vgic_vmcr: PMR_OPEN, ..Mailbox::EMPTY }; 16],
            kicks: 0,
            now: START,
        }
    }

    pub fn vm(&mut self) -> &'static mut Vm {
        // SAFETY: filled by `bare`, lives as long as this; tests use one reference at a time.
        unsafe { &mut *self.vm }
    }

    pub fn init(&mut self, vcpu: u32, off: bool) -> i32 {
        for n in 0..256 {
            self.cores[vcpu as usize][n as usize] = kserv_reset_value(self.vm(), vcpu, n);
        }
        kserv_vcpu_init(self.vm(), vcpu, 5, &[4 | u32::from(off), 0, 0, 0, 0, 0, 0])
    }

    pub fn set_gic(&mut self, group: u32, attr: u64, value: u64) -> i32 {
        // SAFETY: `kicks` is this one's own.
        unsafe { kserv_gic_set(self.vm(), group, attr, Some(&value), &raw mut self.kicks) }
    }

    pub fn set_its(&mut self, group: u32, attr: u64, value: u64) -> i32 {
        // SAFETY: `kicks` is this one's own.
        unsafe { kserv_its_set(self.vm(), group, attr, Some(&value), &raw mut self.kicks) }
    }

    pub fn ids(&mut self) -> Vec<u64> {
        (0..kserv_reg_count(self.vm())).map(|n| kserv_reg_id(self.vm(), n)).collect()
    }

    pub fn find(&mut self, vcpu: u32, id: u64) -> Result<Reg, i32> {
        let mut reg = Reg::default();
        match kserv_reg_find(self.vm(), vcpu, id, &mut reg) {
            0 => Ok(reg),
            errno => Err(errno),
        }
    }

    pub fn find_gic(&mut self, group: u32, attr: u64) -> Result<Reg, i32> {
        let mut reg = Reg::default();
        match kserv_gic_attr_find(self.vm(), group, attr, &mut reg) {
            0 => Ok(reg),
            errno => Err(errno),
        }
    }

    fn core_words(&self, reg: &Reg) -> [u64; 2] {
        let mut words = [0; 2];
        for n in 0..reg.words as usize {
            words[n] = self.cores[reg.vcpu as usize][reg.core as usize + n];
        }
        words
    }

    pub fn get_found(&mut self, reg: &Reg) -> Result<[u64; 2], i32> {
        let (core, mut value) = (self.core_words(reg), [0; 2]);
        match kserv_reg_get(self.vm(), reg, self.now, &core, &mut value) {
            0 => Ok(value),
            errno => Err(errno),
        }
    }

    pub fn set_found(&mut self, reg: &Reg, value: [u64; 2]) -> i32 {
        let mut core = self.core_words(reg);
        // SAFETY: `kicks` is this one's own.
        let done = unsafe { kserv_reg_set(self.vm(), reg, self.now, &value, &mut core, &raw mut self.kicks) };
        if done == 0 {
            let first = reg.core.max(0) as usize;
            let words = reg.words as usize;
            self.cores[reg.vcpu as usize][first..first + words].copy_from_slice(&core[..words]);
        }
        done
    }

    pub fn get(&mut self, vcpu: u32, id: u64) -> Result<[u64; 2], i32> {
        let reg = self.find(vcpu, id)?;
        self.get_found(&reg)
    }

    pub fn set(&mut self, vcpu: u32, id: u64, value: [u64; 2]) -> i32 {
        match self.find(vcpu, id) {
            Ok(reg) => self.set_found(&reg, value),
            Err(errno) => errno,
        }
    }

    pub fn get_attr(&mut self, group: u32, attr: u64) -> Result<u64, i32> {
        let reg = self.find_gic(group, attr)?;
        Ok(self.get_found(&reg)?[0])
    }

    pub fn set_attr(&mut self, group: u32, attr: u64, value: u64) -> i32 {
        match self.find_gic(group, attr) {
            Ok(reg) => self.set_found(&reg, [value, 0]),
            Err(errno) => errno,
        }
    }

    pub fn enter(&mut self, vcpu: u32) -> u32 {
        let now = self.now;
        let mut mailbox = self.mailboxes[vcpu as usize];
        let entry = kserv_on_entry(self.vm(), vcpu, &mut mailbox, now);
        self.mailboxes[vcpu as usize] = mailbox;
        entry
    }

    pub fn exit(&mut self, vcpu: u32, reason: ExitReason) -> RawAction {
        self.exit_raw(vcpu, reason as u64)
    }

    pub fn exit_raw(&mut self, vcpu: u32, reason: u64) -> RawAction {
        let now = self.now;
        let mut action = RawAction::default();
        let mut mailbox = self.mailboxes[vcpu as usize];
        // SAFETY: `kicks` is this one's own.
        unsafe { kserv_on_exit(self.vm(), vcpu, reason, &mut mailbox, now, &mut action, &raw mut self.kicks) };
        self.mailboxes[vcpu as usize] = mailbox;
        action
    }

    pub fn answer(&mut self, vcpu: u32, reason: ExitReason) -> bool {
        let now = self.now;
        let mut mailbox = self.mailboxes[vcpu as usize];
        let answered = kserv_answer(self.vm(), vcpu, reason as u64, &mut mailbox, now);
        self.mailboxes[vcpu as usize] = mailbox;
        answered
    }

    /// Entry and exit.
    pub fn run(&mut self, vcpu: u32, reason: ExitReason, change: impl FnOnce(&mut Mailbox)) -> RawAction {
        assert_eq!(self.enter(vcpu), 0, "vCPU {vcpu} is off");
        change(&mut self.mailboxes[vcpu as usize]);
        self.exit(vcpu, reason)
    }

    pub fn irq_line(&mut self, irq: u32, level: u32) -> i32 {
        // SAFETY: `kicks` is this one's own.
        unsafe { kserv_irq_line(self.vm(), irq, level, &raw mut self.kicks) }
    }

    pub fn set_spi(&mut self, spi: u32, level: bool) -> i32 {
        // SAFETY: `kicks` is this one's own.
        unsafe { kserv_set_spi(self.vm(), spi, level, &raw mut self.kicks) }
    }

    pub fn mp_state_set(&mut self, vcpu: u32, state: u32) -> i32 {
        // SAFETY: `kicks` is this one's own.
        unsafe { kserv_mp_state_set(self.vm(), vcpu, state, &raw mut self.kicks) }
    }

    /// A 32-bit access of the VM to its interrupt controller, served in the kernel.
    pub fn load(&mut self, vcpu: u32, address: u64) -> u32 {
        let action = self.run(vcpu, ExitReason::MmioRead, |mailbox| {
            (mailbox.esr, mailbox.ipa, mailbox.x[5]) = (syndrome(2, false, 5, false, false), address, u64::MAX);
        });
        assert_eq!(action.kind, 0, "{address:#x} is user space's");
        self.mailboxes[vcpu as usize].x[5] as u32
    }

    pub fn store(&mut self, vcpu: u32, address: u64, value: u32) {
        let action = self.run(vcpu, ExitReason::MmioWrite, |mailbox| {
            (mailbox.esr, mailbox.ipa) = (syndrome(2, false, 5, false, true), address);
            mailbox.x[5] = value.into();
        });
        assert_eq!(action.kind, 0, "{address:#x} is user space's");
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: allocated by `bare` with this layout; a Vm needs no drop.
        unsafe { dealloc(self.vm.cast(), self.layout) };
    }
}

/// ESR of a data access: width (log 2), sign extension, register, 64-bit register, write.
pub fn syndrome(sas: u64, sse: bool, srt: u64, sf: bool, write: bool) -> u64 {
    0x24 << 26 | 1 << 24 | sas << 22 | u64::from(sse) << 21 | srt << 16 | u64::from(sf) << 15 | u64::from(write) << 6
}
