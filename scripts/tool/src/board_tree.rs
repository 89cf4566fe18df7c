//! The device trees of QEMU's models of real boards: as Debian's kernel ships them, edited where the model lacks what stock kernels need.

use crate::{
    error::read,
    machine::Board,
    project::Project,
    raspi::{self, DtbError, set_cells, set_text},
};
use dtoolkit::{
    fdt::Fdt,
    model::{DeviceTree, DeviceTreeNode},
};

/// The device tree for QEMU's model of `board`; `None` for virt, which makes its own.
///
/// # Errors
/// [`DtbError`].
pub fn of(project: &Project, board: Board) -> Result<Option<Vec<u8>>, DtbError> {
    match board {
        Board::Virt => Ok(None),
        Board::Raspi4b => raspi::for_qemu(&project.pi_dtb()).map(Some),
        Board::Imx8mpEvk => Ok(Some(read(&project.board_dtb("freescale/imx8mp-evk.dtb"))?)),
        Board::Zcu102 => {
            let path = project.board_dtb("xilinx/zynqmp-zcu102-rev1.0.dtb");
            let bytes = read(&path)?;
            // Not checked by `dtoolkit`, for which some of Xilinx's property names are none.
            let mut tree = DeviceTree::from_fdt(&Fdt::new_unchecked(&bytes));
            let other = || DtbError::OtherBoard(path.display().to_string(), "serial port at /axi/serial@ff000000");
            without_firmware(&mut tree).ok_or_else(other)?;
            Ok(Some(tree.to_dtb()))
        }
    }
}

/// A phandle that no tree of a kernel has: these count from 1.
const CLOCK: u32 = 0x7fff_0000;

/// On the board clocks, power and pins belong to Xilinx's firmware, which the model does not have; Linux then waits for it before it drives the serial port. That one
/// gets a clock that is always there.
fn without_firmware(tree: &mut DeviceTree) -> Option<()> {
    let port = tree.find_node_mut("/axi/serial@ff000000")?;
    for name in ["power-domains", "resets", "pinctrl-0", "pinctrl-names", "assigned-clocks", "assigned-clock-rates"] {
        port.remove_property(name);
    }
    set_cells(port, "clocks", &[CLOCK, CLOCK]);
    let mut clock = DeviceTreeNode::new_unchecked("clock-of-the-console");
    set_text(&mut clock, "compatible", "fixed-clock");
    for (name, value) in [("#clock-cells", 0), ("clock-frequency", 100_000_000), ("phandle", CLOCK)] {
        set_cells(&mut clock, name, &[value]);
    }
    tree.root.add_child(clock);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::{Node, Property};

    #[test]
    fn the_zcu102s_console_needs_nothing_of_firmware() {
        let mut tree = DeviceTree::new();
        assert!(without_firmware(&mut tree).is_none());
        let mut port = DeviceTreeNode::new_unchecked("serial@ff000000");
        ["clocks", "power-domains", "pinctrl-0", "reg"].iter().for_each(|name| set_cells(&mut port, name, &[1, 2]));
        let mut bus = DeviceTreeNode::new_unchecked("axi");
        bus.add_child(port);
        tree.root.add_child(bus);
        without_firmware(&mut tree).unwrap();
        let port = tree.find_node("/axi/serial@ff000000").unwrap();
        assert!(port.property("reg").is_some() && port.property("power-domains").is_none());
        assert_eq!(port.property("clocks").unwrap().value(), [CLOCK.to_be_bytes(), CLOCK.to_be_bytes()].concat());
        assert_eq!(
            tree.find_node("/clock-of-the-console").unwrap().property("phandle").unwrap().value(),
            CLOCK.to_be_bytes()
        );
    }
}
