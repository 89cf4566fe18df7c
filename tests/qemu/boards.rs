//! QEMU's models of real boards, besides the Raspberry Pi's ([`raspi`](crate::raspi)): the device tree is the one that Debian's kernel has for the board.

use crate::{
    bed::{Bed, Checks, Failure, check, healthy},
    host_life::HOTPLUG,
    runner::Case,
};
use corevisor_tool::{
    erratum,
    machine::{Board, Machine},
};

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("boards", name, act);
    vec![
        new("in the code of core and mini host no Cortex-A53 computes wrong (erratum 835769)", erratum),
        new("Debian lives on all four CPUs of an i.MX 8M Plus EVK, GICv3, and the core writes to its UART", |bed| {
            lives(bed, Board::Imx8mpEvk, "ttymxc1")
        }),
        new("Debian lives on all four CPUs of a ZCU102, GIC-400, and the core writes to its UART", |bed| {
            lives(bed, Board::Zcu102, "ttyPS0")
        })
        .only_in_full_if(true),
    ]
}

/// The whole of the console, the core's lines too, came by the board's own UART.
fn lives(bed: &Bed, board: Board, console: &str) -> Result<(), Failure> {
    let script = format!("{HOTPLUG}\ncat /sys/class/tty/console/active");
    let done = healthy(bed.stock(Machine::of(board)), 4, &script)?;
    done.says(console)?;
    done.says("entered at EL2")
}

fn erratum(bed: &Bed) -> Result<(), Failure> {
    for program in [bed.project.core_elf(), bed.project.mini_elf()] {
        let places = erratum::places(&program).map_err(|error| Failure::new(error.to_string()))?;
        check(places.is_empty(), format!("{}: at {places:#x?}", program.display()))?;
    }
    Ok(())
}
