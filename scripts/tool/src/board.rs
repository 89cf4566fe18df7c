//! The boards that QEMU has a model of, and what these models have.

use std::fmt;
use thiserror::Error;

/// What a board cannot do.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MachineError {
    /// A real board's parts are fixed.
    #[error("the {board} of QEMU has {fixed}: leave {option} out, or use --board virt")]
    Fixed {
        /// The board.
        board: Board,
        /// The option that asks for something else.
        option: &'static str,
        /// What there is.
        fixed: String,
    },
    /// The interrupt controller has no interfaces for more.
    #[error("a GICv2 serves at most {GICV2_CPUS} CPUs: give --smp {GICV2_CPUS} or less, or --gic 3")]
    Gicv2,
}

/// The boards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Board {
    /// QEMU's own board.
    Virt,
    /// The Raspberry Pi 4.
    Raspi4b,
    /// NXP's i.MX 8M Plus EVK.
    Imx8mpEvk,
    /// Xilinx's ZCU102 (Zynq UltraScale+).
    Zcu102,
}

/// What QEMU's model of a real board has, whatever is asked for.
pub(crate) struct Fixed {
    /// `-M`.
    pub machine: &'static str,
    /// The model of its CPUs.
    pub cpu: &'static str,
    /// The version of its interrupt controller.
    pub gic: u32,
    /// Serial ports before the one with the console.
    pub ports_before: usize,
}

/// Most CPUs of a machine or VM with a GICv2.
pub(crate) const GICV2_CPUS: u32 = 8;

/// Number of CPUs of each of these boards.
pub(crate) const CPUS: u32 = 4;

impl Board {
    /// Where QEMU puts an arm64 Image that asks for no particular place.
    pub fn image_base(self) -> u64 {
        match self {
            Self::Virt | Self::Imx8mpEvk => 0x4020_0000,
            Self::Raspi4b | Self::Zcu102 => 0x20_0000,
        }
    }

    /// Nothing for virt, which has what it is asked for.
    pub(crate) const fn fixed(self) -> Option<Fixed> {
        match self {
            Self::Virt => None,
            Self::Raspi4b => Some(Fixed { machine: "raspi4b", cpu: "cortex-a72", gic: 2, ports_before: 0 }),
            Self::Imx8mpEvk => Some(Fixed { machine: "imx8mp-evk", cpu: "cortex-a53", gic: 3, ports_before: 1 }),
            Self::Zcu102 => {
                Some(Fixed { machine: "xlnx-zcu102,virtualization=on", cpu: "cortex-a53", gic: 2, ports_before: 0 })
            }
        }
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Virt => "virt",
            Self::Raspi4b => "raspi4b",
            Self::Imx8mpEvk => "imx8mp-evk",
            Self::Zcu102 => "zcu102",
        })
    }
}
