//! The serial port: an Arm PL011 as far as Linux's driver, its early console and bare-metal programs use one.
//!
//! | function            | does                                                                        |
//! |---------------------|-----------------------------------------------------------------------------|
//! | [`Pl011::read`]     | a load by the VM                                                            |
//! | [`Pl011::write`]    | a store; what is sent goes to the callback at once                          |
//! | [`Pl011::receive`]  | a byte for the VM                                                           |
//! | [`Pl011::asserted`] | level of its interrupt                                                      |
//!
//! Sending takes no time: the transmit FIFO is always empty, and TXRIS is set by each byte sent. It sends whether enabled or not, as QEMU's
//! does, because bare-metal programs rely on it. No DMA, no modem lines. Source: PL011 TRM (DDI 0183G) §3.
#![forbid(unsafe_code)]

/// Bytes that wait for the VM.
pub const QUEUE: usize = 256;

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCRH: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
const ID: u64 = 0xfe0;

const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const CR_LBE: u32 = 1 << 7;
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_ALL: u32 = 0x7ff;

/// UARTPeriphID0-3, UARTPCellID0-3: PL011 r1p4.
const IDS: [u32; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The port.
#[derive(Clone, Debug)]
pub struct Pl011 {
    queue: [u8; QUEUE],
    head: usize,
    waiting: usize,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcrh: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
    lost: u64,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Pl011 {
    /// After reset.
    pub const fn new() -> Self {
        Self {
            queue: [0; QUEUE],
            head: 0,
            waiting: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcrh: 0,
            cr: 0x300,
            ifls: 0x12,
            imsc: 0,
            ris: 0,
            dmacr: 0,
            lost: 0,
        }
    }

    /// Level of the interrupt.
    pub const fn asserted(&self) -> bool {
        self.ris & self.imsc != 0
    }

    /// Bytes that did not fit into the queue so far.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Bytes that [`Self::receive`] takes now.
    pub const fn room(&self) -> usize {
        QUEUE - self.waiting
    }

    /// A byte for the VM. Whether there was room.
    pub fn receive(&mut self, byte: u8) -> bool {
        if self.waiting == QUEUE {
            self.lost = self.lost.saturating_add(1);
            return false;
        }
        self.queue[(self.head + self.waiting) % QUEUE] = byte;
        self.waiting += 1;
        self.ris |= INT_RX;
        true
    }

    fn take(&mut self) -> u8 {
        if self.waiting == 0 {
            return 0;
        }
        let byte = self.queue[self.head];
        self.head = (self.head + 1) % QUEUE;
        self.waiting -= 1;
        // A handler that takes one byte an interrupt gets the next interrupt too.
        self.ris = self.ris & !INT_RX | if self.waiting > 0 { INT_RX } else { 0 };
        byte
    }

    /// A load at `offset`, of any width.
    pub fn read(&mut self, offset: u64) -> u32 {
        match offset {
            DR => self.take().into(),
            FR => {
                let receive = match self.waiting {
                    0 => FR_RXFE,
                    QUEUE => FR_RXFF,
                    _ => 0,
                };
                FR_TXFE | receive
            }
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCRH => self.lcrh,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.ris,
            MIS => self.ris & self.imsc,
            DMACR => self.dmacr,
            // No error was ever received.
            RSR => 0,
            ID..=0xfff if offset.is_multiple_of(4) => IDS[((offset - ID) / 4) as usize],
            _ => 0,
        }
    }

    /// A store at `offset`; `send` gets what leaves the port.
    pub fn write(&mut self, offset: u64, value: u32, send: &mut dyn FnMut(u8)) {
        match offset {
            DR => {
                if self.cr & CR_LBE != 0 {
                    self.receive(value as u8);
                } else {
                    send(value as u8);
                }
                self.ris |= INT_TX;
            }
            ILPR => self.ilpr = value & 0xff,
            IBRD => self.ibrd = value & 0xffff,
            FBRD => self.fbrd = value & 0x3f,
            LCRH => self.lcrh = value & 0xff,
            CR => self.cr = value & 0xff87,
            IFLS => self.ifls = value & 0x3f,
            IMSC => self.imsc = value & INT_ALL,
            ICR => self.ris &= !value,
            DMACR => self.dmacr = value & 7,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn send(port: &mut Pl011, offset: u64, value: u32) -> Vec<u8> {
        let mut sent = Vec::new();
        port.write(offset, value, &mut |byte| sent.push(byte));
        sent
    }

    #[test]
    fn what_is_written_is_sent_at_once_and_raises_the_transmit_interrupt_where_enabled() {
        let mut port = Pl011::new();
        assert_eq!(port.read(FR), FR_TXFE | FR_RXFE);
        assert_eq!(send(&mut port, DR, 0x141), [0x41]);
        assert_eq!((port.read(RIS), port.read(MIS), port.asserted()), (INT_TX, 0, false));
        send(&mut port, IMSC, INT_TX);
        assert!(port.asserted());
        send(&mut port, ICR, INT_TX);
        assert!(!port.asserted());
    }

    #[test]
    fn what_is_received_is_read_in_order_and_the_interrupt_holds_until_all_is_read() {
        let mut port = Pl011::new();
        send(&mut port, IMSC, INT_RX);
        for byte in *b"abc" {
            assert!(port.receive(byte));
        }
        send(&mut port, ICR, INT_RX);
        assert!(!port.asserted());
        assert_eq!(port.read(DR), u32::from(b'a'));
        assert!(port.asserted() && port.read(FR) & FR_RXFE == 0);
        assert_eq!((port.read(DR), port.read(DR)), (b'b'.into(), b'c'.into()));
        assert!(!port.asserted() && port.read(FR) & FR_RXFE != 0);
        assert_eq!(port.read(DR), 0);
    }

    #[test]
    fn a_full_queue_takes_no_more_and_says_so() {
        let mut port = Pl011::new();
        for n in 0..QUEUE {
            assert_eq!(port.room(), QUEUE - n);
            assert!(port.receive(n as u8));
        }
        assert!(!port.receive(0) && port.lost() == 1 && port.read(FR) & FR_RXFF != 0);
        assert_eq!(port.read(DR), 0);
        assert!(port.receive(7));
        for n in 1..QUEUE {
            assert_eq!(port.read(DR), n as u32 & 0xff);
        }
        assert_eq!(port.read(DR), 7);
    }

    #[test]
    fn linux_finds_a_primecell_uart() {
        let mut port = Pl011::new();
        let id = |port: &mut Pl011, from: u64| (0..4).map(|n| port.read(from + n * 4) << (n * 8)).sum::<u32>();
        assert_eq!(id(&mut port, 0xfe0), 0x0014_1011);
        assert_eq!(id(&mut port, 0xff0), 0xb105_f00d);
    }

    #[test]
    fn no_access_makes_it_panic_and_it_never_holds_more_than_its_queue() {
        let (mut port, mut x, mut sent) = (Pl011::new(), 1u64, 0usize);
        for _ in 0..200_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (offset, value) = ((x >> 33) % 0x1010, (x >> 20) as u32);
            let offset = if x >> 60 == 0 { x } else { offset & if x >> 59 & 1 == 0 { 0x7c } else { 0xfff } };
            port.write(offset, value, &mut |_| sent += 1);
            port.read(offset);
            if x >> 58 & 3 == 0 {
                port.receive(value as u8);
            }
            assert!(port.waiting <= QUEUE && port.room() == QUEUE - port.waiting);
            assert_eq!(port.read(FR) & FR_RXFE != 0, port.waiting == 0);
            assert_eq!(port.asserted(), port.read(MIS) != 0);
        }
        assert!(sent > 100);
    }

    #[test]
    fn in_loopback_it_hears_itself() {
        let mut port = Pl011::new();
        send(&mut port, CR, CR_LBE);
        assert_eq!(send(&mut port, DR, 0x55), [0u8; 0]);
        assert_eq!(port.read(DR), 0x55);
    }
}
