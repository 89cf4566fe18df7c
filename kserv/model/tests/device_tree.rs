//! The device tree that a VM gets, read back.
#![forbid(unsafe_code)]

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode};
use dtoolkit::{Node, Property};
use kserv_model::fdt::{Machine, build};
use kserv_model::vm::GicVersion;

fn machine(gic: GicVersion, vcpus: usize) -> Machine<'static> {
    Machine {
        vcpus,
        memory: 0x1000_0000,
        gic,
        bootargs: "console=ttyAMA0 quiet",
        initrd: Some((0x4400_0000, 0x4400_1234)),
    }
}

fn tree(machine: &Machine<'_>) -> DeviceTree {
    DeviceTree::from_fdt(&Fdt::new(&build(machine)).unwrap())
}

fn value(node: &DeviceTreeNode, name: &str) -> Vec<u8> {
    node.property(name).unwrap_or_else(|| panic!("no {name}")).value().to_vec()
}

fn cells(node: &DeviceTreeNode, name: &str) -> Vec<u32> {
    value(node, name).chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
}

#[test]
fn the_same_machine_gives_the_same_bytes() {
    for gic in [GicVersion::V2, GicVersion::V3] {
        assert_eq!(build(&machine(gic, 4)), build(&machine(gic, 4)));
    }
    assert!(build(&machine(GicVersion::V3, 16)).len() < 0x2000);
}

#[test]
fn a_kernel_finds_its_memory_console_command_line_and_initrd_and_no_seed() {
    let tree = tree(&machine(GicVersion::V2, 1));
    assert_eq!(cells(tree.find_node("/memory@40000000").unwrap(), "reg"), [0, 0x4000_0000, 0, 0x1000_0000]);
    let chosen = tree.find_node("/chosen").unwrap();
    assert_eq!(value(chosen, "bootargs"), b"console=ttyAMA0 quiet\0");
    assert_eq!(value(chosen, "stdout-path"), b"/pl011@9000000\0");
    assert_eq!(cells(chosen, "linux,initrd-start"), [0, 0x4400_0000]);
    assert_eq!(cells(chosen, "linux,initrd-end"), [0, 0x4400_1234]);
    assert!(chosen.property("kaslr-seed").is_none() && chosen.property("rng-seed").is_none());
    let uart = tree.find_node("/pl011@9000000").unwrap();
    assert_eq!(cells(uart, "interrupts"), [0, 1, 4]);
    assert_eq!(cells(uart, "clocks"), [cells(tree.find_node("/apb-pclk").unwrap(), "phandle")[0]; 2]);
}

#[test]
fn every_vcpu_is_there_and_started_by_psci() {
    let tree = tree(&machine(GicVersion::V3, 4));
    for vcpu in 0..4 {
        let cpu = tree.find_node(&format!("/cpus/cpu@{vcpu}")).unwrap();
        assert_eq!((cells(cpu, "reg"), value(cpu, "enable-method")), (vec![vcpu], b"psci\0".to_vec()));
    }
    assert!(tree.find_node("/cpus/cpu@4").is_none());
    assert_eq!(value(tree.find_node("/psci").unwrap(), "method"), b"hvc\0");
}

#[test]
fn the_interrupt_controller_is_the_machines() {
    let v2 = tree(&machine(GicVersion::V2, 2));
    let intc = v2.find_node("/intc@8000000").unwrap();
    assert_eq!(value(intc, "compatible"), b"arm,cortex-a15-gic\0");
    assert_eq!(cells(intc, "reg"), [0, 0x0800_0000, 0, 0x1_0000, 0, 0x0801_0000, 0, 0x2000]);
    assert_eq!(cells(&v2.root, "interrupt-parent"), cells(intc, "phandle"));
    let timer = v2.find_node("/timer").unwrap();
    assert_eq!(cells(timer, "interrupts"), [1, 13, 0x304, 1, 14, 0x304, 1, 11, 0x304, 1, 10, 0x304]);
    let v3 = tree(&machine(GicVersion::V3, 3));
    let intc = v3.find_node("/intc@8000000").unwrap();
    assert_eq!(value(intc, "compatible"), b"arm,gic-v3\0");
    assert_eq!(cells(intc, "reg"), [0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x6_0000]);
    assert_eq!(cells(v3.find_node("/timer").unwrap(), "interrupts")[2], 4);
}
