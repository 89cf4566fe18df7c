//! One interrupt, wherever it is.
#![forbid(unsafe_code)]

use super::NOBODY;

/// What stands in a list register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    /// It was pending there.
    pub(super) pending: bool,
    /// The latch went with it.
    pub(super) latched: bool,
    /// Sender of a GICv2 SGI.
    pub(super) source: u8,
    /// Somebody cleared its pending state since.
    pub(super) withdrawn: bool,
    /// Somebody wrote its active state since.
    pub(super) active_written: bool,
}

/// One interrupt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Irq {
    pub(super) priority: u8,
    /// vCPUs that it may go to, one bit each (SPIs).
    pub(super) route: u16,
    pub(super) enabled: bool,
    pub(super) group1: bool,
    pub(super) edge: bool,
    pub(super) line: bool,
    /// An edge, or set by software.
    pub(super) latch: bool,
    /// GICv2 SGI: senders that wait.
    pub(super) sources: u8,
    pub(super) active: bool,
    /// GICv2 SGI: sender of the active one.
    pub(super) source: u8,
    /// The vCPU that has it active or in a list register.
    pub(super) holder: u8,
    pub(super) placed: Option<Placed>,
}

impl Irq {
    pub(super) const RESET: Self = Self {
        priority: 0,
        route: 0,
        enabled: false,
        group1: false,
        edge: false,
        line: false,
        latch: false,
        sources: 0,
        active: false,
        source: 0,
        holder: NOBODY,
        placed: None,
    };

    /// Pending here, apart from a list register.
    pub(super) const fn pending(&self) -> bool {
        self.latch || self.sources != 0 || (self.line && !self.edge)
    }

    pub(super) fn pending_anywhere(&self) -> bool {
        self.pending() || self.placed.is_some_and(|placed| placed.pending && !placed.withdrawn)
    }

    pub(super) const fn is_hot(&self) -> bool {
        self.pending() || self.active || self.placed.is_some()
    }
}
