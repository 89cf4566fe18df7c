//! LPIs: interrupts of 8192 and on, of which few have a place. They stand behind the SPIs; only list registers call them by their number.
//!
//! To the engine an LPI is an edge: it is pending, or in a list register, where its acknowledgement and end are as any other's. Source: IHI 0069H
//! §5.1, §4.1.2.
#![forbid(unsafe_code)]

use super::{Engine, Irq, NOBODY, PRIORITY_MASK, PRIVATE};

/// What an LPI is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lpi {
    /// Its number, from 8192 on.
    pub number: u32,
    /// Who gets it; `None`: nobody.
    pub vcpu: Option<usize>,
    /// It may be signalled.
    pub enabled: bool,
    /// Priority.
    pub priority: u8,
}

impl<const V: usize, const S: usize> Engine<V, S> {
    /// Places for LPIs from now on: as many as there is room for behind the SPIs.
    pub fn add_lpis(&mut self) {
        self.lpis = S - self.spis.min(S);
    }

    /// Places for LPIs.
    pub const fn lpis(&self) -> usize {
        self.lpis
    }

    const fn lpi(&self, place: usize) -> usize {
        PRIVATE + self.spis + place
    }

    /// What list registers call an interrupt.
    pub(super) fn name(&self, intid: usize) -> usize {
        match intid.checked_sub(PRIVATE + self.spis) {
            Some(place) => self.lpi_numbers.get(place).map_or(0, |number| *number as usize),
            None => intid,
        }
    }

    /// What stands at a place.
    pub fn set_lpi(&mut self, place: usize, lpi: Lpi) {
        let Some(number) = self.lpi_numbers.get_mut(place) else { return };
        *number = lpi.number;
        self.change(0, self.lpi(place), |irq| {
            (irq.edge, irq.group1, irq.enabled) = (true, true, lpi.enabled);
            irq.priority = lpi.priority & PRIORITY_MASK;
            irq.route = lpi.vcpu.map_or(0, |vcpu| 1 << vcpu);
        });
    }

    /// It becomes pending.
    pub fn raise_lpi(&mut self, place: usize) {
        if place < self.lpis {
            self.change(0, self.lpi(place), |irq| irq.latch = true);
        }
    }

    /// Whether it is pending.
    pub fn is_lpi_pending(&self, place: usize) -> bool {
        place < self.lpis && self.irq(0, self.lpi(place)).is_some_and(Irq::pending_anywhere)
    }

    /// A vCPU takes none any more: what was pending for it is lost.
    pub fn drop_lpis(&mut self, vcpu: usize) {
        for place in 0..self.lpis {
            if self.irq(0, self.lpi(place)).is_some_and(|irq| irq.is_hot() && irq.route == 1 << vcpu) {
                self.clear_lpi(place, false);
            }
        }
    }

    /// Whether a vCPU has it active, or in a list register.
    pub fn is_lpi_held(&self, place: usize) -> bool {
        place < self.lpis && self.irq(0, self.lpi(place)).is_some_and(|irq| irq.active || irq.placed.is_some())
    }

    /// It is not pending any more; with `forget` its place is another's next.
    pub fn clear_lpi(&mut self, place: usize, forget: bool) {
        if place >= self.lpis {
            return;
        }
        self.change(0, self.lpi(place), |irq| {
            irq.latch = false;
            if let Some(placed) = &mut irq.placed {
                (placed.withdrawn, placed.active_written) = (true, placed.active_written || forget);
            }
            if forget {
                (irq.enabled, irq.active) = (false, false);
            }
            if forget && irq.placed.is_none() {
                irq.holder = NOBODY;
            }
        });
    }
}
