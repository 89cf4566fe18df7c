//! GICv2 and GICv3: enough for the virtual timer and one inter-processor interrupt.

use crate::arch::{read32, vcpu, write32};
use crate::{mrs, msr};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// The virtual timer's interrupt.
pub const TIMER: u32 = 27;
/// The inter-processor interrupt that guests use.
pub const SGI: u32 = 5;

const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const GICR: u64 = 0x080a_0000;
const GICR_STRIDE: u64 = 0x2_0000;
const SGI_FRAME: u64 = 0x1_0000;

static V3: AtomicBool = AtomicBool::new(false);
static TIMERS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static SGIS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

/// Prepares the distributor; on vCPU 0, once. `v3`: which GIC this is.
pub fn start(v3: bool) {
    V3.store(v3, SeqCst);
    // GICv3 as Linux does it: affinity routing, group 1.
    write32(GICD, if v3 { 0x13 } else { 1 });
}

/// Prepares this vCPU's part: timer and SGI enabled.
pub fn start_vcpu() {
    let enabled = 1 << TIMER | 1 << SGI;
    if V3.load(SeqCst) {
        let frame = GICR + vcpu() * GICR_STRIDE;
        write32(frame + 0x14, read32(frame + 0x14) & !2);
        while read32(frame + 0x14) & 4 != 0 {}
        write32(frame + SGI_FRAME + 0x80, u32::MAX);
        write32(frame + SGI_FRAME + 0x100, enabled);
        msr!("icc_sre_el1", 7);
        msr!("icc_pmr_el1", 0xf0);
        msr!("icc_igrpen1_el1", 1);
    } else {
        write32(GICD + 0x100, enabled);
        write32(GICC + 4, 0xf0);
        write32(GICC, 1);
    }
}

/// Lets the virtual timer fire after so many ticks.
pub fn timer_in(ticks: u64) {
    msr!("cntv_cval_el0", mrs!("cntvct_el0") + ticks);
    msr!("cntv_ctl_el0", 1);
}

/// How often this vCPU's timer has interrupted it.
pub fn timers() -> u64 {
    TIMERS[vcpu() as usize].load(SeqCst)
}

/// How many inter-processor interrupts a vCPU has got.
pub fn sgis(vcpu: u64) -> u64 {
    SGIS[vcpu as usize].load(SeqCst)
}

/// Interrupts another vCPU (or this one).
pub fn send_sgi(vcpu: u64) {
    if V3.load(SeqCst) {
        msr!("icc_sgi1r_el1", u64::from(SGI) << 24 | 1 << vcpu);
    } else {
        write32(GICD + 0xf00, 1 << (16 + vcpu) | SGI);
    }
}

/// Acknowledges the next interrupt: what [`end`] wants. Its number is in bits 9 to 0; 1020 and on: there is none.
#[inline(always)]
pub fn acknowledge() -> u32 {
    if V3.load(SeqCst) { mrs!("icc_iar1_el1") as u32 } else { read32(GICC + 0xc) }
}

/// Ends it.
#[inline(always)]
pub fn end(acknowledged: u32) {
    if V3.load(SeqCst) {
        msr!("icc_eoir1_el1", u64::from(acknowledged));
    } else {
        write32(GICC + 0x10, acknowledged);
    }
}

/// The interrupt handler.
pub fn interrupted() {
    let iar = acknowledge();
    let (number, me) = (iar & 0x3ff, vcpu() as usize);
    // Only this vCPU writes its counters.
    let add = |counter: &AtomicU64| counter.store(counter.load(SeqCst) + 1, SeqCst);
    match number {
        TIMER => {
            msr!("cntv_ctl_el0", 0);
            add(&TIMERS[me]);
        }
        SGI => add(&SGIS[me]),
        1020..=1023 => return,
        other => crate::fail!("interrupt {other}, which nobody asked for"),
    }
    end(iar);
}
