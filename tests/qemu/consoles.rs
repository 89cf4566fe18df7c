//! The core's console on serial ports other than virt's PL011: found from the device tree, and nowhere else.

use crate::{
    bed::{Bed, Checks, Failure, check},
    placed::Placed,
    runner::Case,
};
use corevisor_tool::{machine::Machine, outcome::Finished, raspi, raspi::set};
use dtoolkit::{
    fdt::Fdt,
    model::{DeviceTree, DeviceTreeNode},
};
use std::path::Path;

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("console", name, act);
    vec![
        new("the core speaks on the Raspberry Pi's mini UART, which its host uses too", mini_uart),
        new("the core speaks on a 16550", ns16550),
    ]
}

/// The core's words from beginning to end are in the file `port`, and none where its host speaks.
fn speaks_on(port: &Path, done: &Finished) -> Result<String, Failure> {
    done.succeeded()?;
    done.says("under corevisor")?;
    done.says_times("corevisor: ", 0)?;
    let said = String::from_utf8_lossy(&std::fs::read(port)?).into_owned();
    for text in
        ["corevisor: version ", "entered at EL2\r\n", "corevisor: host ends the run: ", "host accesses denied: 0\r\n"]
    {
        check(said.matches(text).count() == 1, format!("the serial port should show {text:?} once:\n{said}"))?;
    }
    Ok(said)
}

/// The second serial port of QEMU's raspi4b.
fn mini_uart(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (port, dtb) = (dir.path().join("port"), dir.path().join("dtb"));
    let bytes = raspi::for_qemu(&bed.project.pi_dtb()).map_err(|error| Failure::new(error.to_string()))?;
    let fdt = Fdt::new(&bytes).map_err(|error| Failure::new(error.to_string()))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    let chosen = tree.find_node_mut("/chosen").ok_or_else(|| Failure::new("the Pi's tree has no /chosen"))?;
    set(chosen, "stdout-path", b"serial1:115200n8\0");
    std::fs::write(&dtb, tree.to_dtb())?;
    let machine = Machine::raspi4b().arg("-serial").arg(format!("file:{}", port.display()));
    let script = "echo 'host: on the same port' > /dev/ttyS1 && stty opost < /dev/ttyS1";
    let done = bed.run(machine).dtb(dtb).script(script).finish()?;
    let said = speaks_on(&port, &done)?;
    check(said.contains("host: on the same port"), format!("the host's own line is not there:\n{said}"))
}

/// Where virt shows PCI's I/O ports, and the one that the boot loader gives the 16550.
const PORTS: u64 = 0x3eff_0000;
const PORT: u64 = 0x1000;

/// A boot loader's work: virt has 16550s as PCI devices only, without an address at reset. This one is in slot 1.
const GIVE_PORT: [u32; 7] = [
    0xd290_0001, // movz x1, #0x8000: function 0 of slot 1
    0xf2a2_0001, // movk x1, #0x1000, lsl #16: in the configuration space
    0xf2c0_0801, // movk x1, #0x40, lsl #32: at 0x40_1000_0000
    0x5282_0002, // movz w2, #0x1000
    0xb900_1022, // str w2, [x1, #0x10]: BAR 0
    0x5280_0022, // movz w2, #1
    0x7900_0822, // strh w2, [x1, #4]: command, I/O space
];

fn ns16550(bed: &Bed) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let port = dir.path().join("port");
    let mut placed = Placed::virt(bed, 2, &[], "true")?;
    placed.before = GIVE_PORT.to_vec();
    placed.arg("-chardev").arg(format!("file,id=port,path={}", port.display()));
    placed.arg("-device").arg("pci-serial,chardev=port,addr=1");
    // The host is told of the serial port alone: it would move what it finds on the bus.
    let root = &mut placed.tree.root;
    check(root.remove_child("pcie@10000000").is_some(), "QEMU's tree has no pcie@10000000")?;
    let mut node = DeviceTreeNode::new_unchecked(format!("serial@{:x}", PORTS + PORT));
    set(&mut node, "compatible", b"ns16550a\0");
    set(&mut node, "reg", &[(PORTS + PORT).to_be_bytes(), 8_u64.to_be_bytes()].concat());
    root.add_child(node);
    let chosen = placed.tree.find_node_mut("/chosen").ok_or_else(|| Failure::new("QEMU's tree has no /chosen"))?;
    set(chosen, "stdout-path", format!("/serial@{:x}\0", PORTS + PORT).as_bytes());
    speaks_on(&port, &placed.run(bed)?.finish()?).map(drop)
}
