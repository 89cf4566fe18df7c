//! How an access of a VM reaches one of its devices.
#![forbid(unsafe_code)]

use crate::mmio::{Access, Device, Width};
use crate::pl011::Pl011;

/// The serial port with where it sends.
pub(super) struct Console<'a> {
    pub port: &'a mut Pl011,
    pub send: &'a mut dyn FnMut(u8),
}

impl Device for Console<'_> {
    fn read(&mut self, _: usize, offset: u64, _: Width) -> u64 {
        self.port.read(offset).into()
    }

    fn write(&mut self, _: usize, offset: u64, _: Width, value: u64) {
        self.port.write(offset, value as u32, self.send);
    }
}

/// An access to a device at `offset`: what a load gives.
pub(super) fn device(device: &mut impl Device, vcpu: usize, offset: u64, access: &Access) -> u64 {
    match access.write {
        None => device.read(vcpu, offset, access.width),
        Some(value) => {
            device.write(vcpu, offset, access.width, value);
            0
        }
    }
}
