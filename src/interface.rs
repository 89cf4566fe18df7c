//! The calls that the core answers, in one table: numbers, names, results.
//!
//! All are SMC Calling Convention (Arm DEN 0028) fast calls by `HVC #0`. The host's own calls stand in the range of
//! vendor-specific hypervisor services, from function number 0x8000 on, so that they never meet those that Linux's
//! guests use (0 and up). An unknown call returns [`CallError::NotSupported`]; the calls of Linux's EL2 boot stub (0 to 5)
//! are unknown calls (K §8.3 A19).
#![forbid(unsafe_code)]

/// Version of this table: major in the upper 16 bits, minor in the lower. A call is never changed, only added (minor) or
/// removed (major).
pub const INTERFACE_VERSION: u64 = 1;

/// SMCCC: fast call, 64 bit, vendor-specific hypervisor service, function 0x8000.
const HOST_BASE: u64 = 0xc600_8000;

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident = $number:expr,)*) => {
        /// The calls that the host can make.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum HostCall {
            $($(#[$doc])* $name,)*
        }

        impl HostCall {
            /// Every call.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The call with this function identifier.
            pub const fn from_function(function: u64) -> Option<Self> {
                match function {
                    $(number if number == $number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its function identifier, for x0.
            pub const fn function(self) -> u64 {
                match self { $(Self::$name => $number,)* }
            }
        }
    };
}

calls! {
    /// `()` -> x0 = [`INTERFACE_VERSION`].
    CoreVersion = HOST_BASE,
    /// `(event)` -> x0 = 0, x1 = how often the event was counted, over all CPUs since boot
    /// (numbers: `per_cpu::Event`, in order). Errors: [`CallError::InvalidParameter`].
    CoreStatistics = HOST_BASE + 1,
    /// `(seq)` -> x0 = 0, x1 = next sequence number, x2, x3 = up to 16 bytes of the core's log from sequence
    /// number `seq` on, the first in the low byte; `x1 - seq` may be larger than 16 if older lines are gone; no more if x1 = seq.
    CoreLogRead = HOST_BASE + 2,
    /// `()` -> x0-x3 = the core's UID, as SMCCC's "call UID" query gives it. Guests of KVM look for KVM's UID here.
    CallUid = 0x8600_ff01,
    /// `()` -> x0 = major, x1 = minor version of the interface.
    CallRevision = 0x8600_ff03,
}

/// The core's UID: 1d7ff4a1-6a4e-4b1c-9c55-c04e5150cafe, as four words of RFC 4122 order.
pub const CORE_UID: [u64; 4] = [0xa1f4_7f1d, 0x1c4b_4e6a, 0x4ec0_559c, 0xfeca_5051];

/// Why a call failed: negative numbers in x0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i64)]
pub enum CallError {
    /// There is no such call.
    NotSupported = -1,
    /// An argument is out of its range.
    InvalidParameter = -3,
}

impl CallError {
    /// The value for x0.
    pub const fn x0(self) -> u64 {
        self as i64 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_found_by_its_number_and_no_two_share_one() {
        for (n, call) in HostCall::ALL.iter().enumerate() {
            assert_eq!(HostCall::from_function(call.function()), Some(*call));
            assert!(HostCall::ALL.iter().skip(n + 1).all(|other| other.function() != call.function()));
        }
    }

    #[test]
    fn the_calls_of_linuxs_boot_stub_do_not_exist() {
        for stub in 0..=16 {
            assert_eq!(HostCall::from_function(stub), None);
        }
    }
}
