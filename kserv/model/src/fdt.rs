//! A VM's device tree: QEMU's virt machine as far as it is there. The same machine gives the same bytes.
//!
//! Nodes: `/chosen`, `/memory`, `/cpus`, `/psci` (by HVC), `/timer`, `/intc`, `/pl011`, `/apb-pclk`. There is no `kaslr-seed` and no
//! `rng-seed`: the tree is part of what is signed. Sources: Linux, Documentation/devicetree/bindings; QEMU 10.0 `hw/arm/virt.c`.
#![forbid(unsafe_code)]

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::layout::{
    GICC_BASE, GICC_SIZE, GICD_BASE, GICD_SIZE, GICR_BASE, GICR_STRIDE, RAM_BASE, UART_BASE, UART_SIZE, affinity,
};
use crate::vm::GicVersion;

/// phandles.
const INTC: u32 = 0x8001;
const CLOCK: u32 = 0x8000;
/// Interrupt cells: kind, number, flags.
const PPI: u32 = 1;
const SPI: u32 = 0;
const LEVEL_HIGH: u32 = 4;

/// What the device tree describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Machine<'a> {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Bytes of RAM from `0x4000_0000` on.
    pub memory: u64,
    /// Interrupt controller.
    pub gic: GicVersion,
    /// Kernel's command line.
    pub bootargs: &'a str,
    /// First byte of the initrd, and the one behind its last.
    pub initrd: Option<(u64, u64)>,
}

struct Node(DeviceTreeNode);

impl Node {
    fn new(name: impl Into<String>) -> Self {
        Self(DeviceTreeNode::new_unchecked(name))
    }

    fn bytes(mut self, name: &str, value: Vec<u8>) -> Self {
        self.0.add_property(DeviceTreeProperty::new_unchecked(name, value));
        self
    }

    fn cells(self, name: &str, cells: &[u32]) -> Self {
        self.bytes(name, cells.iter().flat_map(|cell| cell.to_be_bytes()).collect())
    }

    /// 64-bit numbers, as two cells each.
    fn wide(self, name: &str, numbers: &[u64]) -> Self {
        self.bytes(name, numbers.iter().flat_map(|number| number.to_be_bytes()).collect())
    }

    fn texts(self, name: &str, texts: &[&str]) -> Self {
        self.bytes(name, texts.iter().flat_map(|text| text.bytes().chain([0])).collect())
    }

    fn flag(self, name: &str) -> Self {
        self.bytes(name, Vec::new())
    }

    fn with(mut self, child: Self) -> Self {
        self.0.add_child(child.0);
        self
    }
}

/// The device tree of `machine`.
pub fn build(machine: &Machine<'_>) -> Vec<u8> {
    let root = Node::new("")
        .cells("interrupt-parent", &[INTC])
        .texts("model", &["linux,dummy-virt"])
        .cells("#size-cells", &[2])
        .cells("#address-cells", &[2])
        .texts("compatible", &["linux,dummy-virt"])
        .with(chosen(machine))
        .with(
            Node::new(format!("memory@{RAM_BASE:x}"))
                .texts("device_type", &["memory"])
                .wide("reg", &[RAM_BASE, machine.memory]),
        )
        .with(cpus(machine))
        .with(Node::new("psci").texts("compatible", &["arm,psci-1.0", "arm,psci-0.2"]).texts("method", &["hvc"]))
        .with(timer(machine))
        .with(interrupt_controller(machine))
        .with(
            Node::new(format!("pl011@{UART_BASE:x}"))
                .texts("compatible", &["arm,pl011", "arm,primecell"])
                .wide("reg", &[UART_BASE, UART_SIZE])
                .cells("interrupts", &[SPI, 1, LEVEL_HIGH])
                .cells("clocks", &[CLOCK, CLOCK])
                .texts("clock-names", &["uartclk", "apb_pclk"]),
        )
        .with(
            Node::new("apb-pclk")
                .texts("compatible", &["fixed-clock"])
                .cells("#clock-cells", &[0])
                .cells("clock-frequency", &[24_000_000])
                .texts("clock-output-names", &["clk24mhz"])
                .cells("phandle", &[CLOCK]),
        );
    let mut tree = DeviceTree::new();
    tree.root = root.0;
    tree.to_dtb()
}

fn chosen(machine: &Machine<'_>) -> Node {
    let stdout = format!("/pl011@{UART_BASE:x}");
    let node = Node::new("chosen").texts("stdout-path", &[&stdout]).texts("bootargs", &[machine.bootargs]);
    match machine.initrd {
        None => node,
        Some((start, end)) => node.wide("linux,initrd-start", &[start]).wide("linux,initrd-end", &[end]),
    }
}

fn cpus(machine: &Machine<'_>) -> Node {
    let cpus = Node::new("cpus").cells("#size-cells", &[0]).cells("#address-cells", &[1]);
    (0..machine.vcpus).fold(cpus, |cpus, vcpu| {
        let affinity = affinity(vcpu) as u32;
        cpus.with(
            Node::new(format!("cpu@{affinity:x}"))
                .texts("device_type", &["cpu"])
                .texts("compatible", &["arm,armv8"])
                .cells("reg", &[affinity])
                .texts("enable-method", &["psci"]),
        )
    })
}

fn timer(machine: &Machine<'_>) -> Node {
    // GICv2's PPIs name their CPUs in bits 15:8.
    let cpus = match machine.gic {
        GicVersion::V2 => ((1u32 << machine.vcpus.min(8)) - 1) << 8,
        GicVersion::V3 => 0,
    };
    let interrupts = [13, 14, 11, 10].map(|ppi| [PPI, ppi, cpus | LEVEL_HIGH]);
    Node::new("timer")
        .texts("compatible", &["arm,armv8-timer", "arm,armv7-timer"])
        .cells("interrupts", interrupts.as_flattened())
        .flag("always-on")
}

fn interrupt_controller(machine: &Machine<'_>) -> Node {
    let (compatible, second) = match machine.gic {
        GicVersion::V2 => ("arm,cortex-a15-gic", [GICC_BASE, GICC_SIZE]),
        GicVersion::V3 => ("arm,gic-v3", [GICR_BASE, GICR_STRIDE * machine.vcpus as u64]),
    };
    let node = Node::new(format!("intc@{GICD_BASE:x}"))
        .texts("compatible", &[compatible])
        .wide("reg", &[GICD_BASE, GICD_SIZE, second[0], second[1]])
        .cells("#interrupt-cells", &[3])
        .cells("#size-cells", &[2])
        .cells("#address-cells", &[2])
        .flag("interrupt-controller")
        .flag("ranges")
        .cells("phandle", &[INTC]);
    match machine.gic {
        GicVersion::V2 => node,
        GicVersion::V3 => node.cells("#redistributor-regions", &[1]),
    }
}
