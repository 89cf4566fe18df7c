//! Which node is what: `compatible` strings and names that the core knows. Nothing else may compare such strings.
#![forbid(unsafe_code)]

use super::description::{ModuleKind, SmmuVersion};
use crate::platform::console::soc::SocUart;

/// What a node's `compatible` says it is. Where several strings match, the greatest role wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Role {
    Other,
    GicV2,
    GicV3,
    Its,
    /// A machine whose GIC does not see what caches hold, whatever its registers and its nodes say.
    GicIncoherent,
    /// A GICv2m frame: devices raise interrupts by writing to it.
    MsiFrame,
    Psci,
    Timer,
    Ns16550,
    /// As [`Role::Ns16550`], its registers words unless the node says otherwise.
    Ns16550Words,
    Soc(SocUart),
    Bcm2835Aux,
    SbsaUart,
    Pl011,
    BcmPower,
    /// Reaches memory beside every SMMU, unless the node says otherwise by `iommus`.
    BesideSmmus,
    Smmu(SmmuVersion),
    /// Linux drives it by registers that an implementation has of its own (CRn 11, 15), which are undefined for the host
    /// (`abstract_machine::cpu::traps`): an oops of its kernel.
    OwnRegisters,
    /// External debug or trace of a CPU: by its registers one CPU halts another, at EL2 too, or sees what it does.
    Debug,
    OtherModule,
    KernelModule,
    RamdiskModule,
}

/// The strings that the core knows.
const ROLES: &[(&str, Role)] = &[
    ("arm,armv8-timer", Role::Timer),
    ("arm,gic-v3", Role::GicV3),
    ("arm,gic-v3-its", Role::Its),
    // Linux, drivers/irqchip/irq-gic-v3-its.c: Rockchip's errata 3588001 and 3568002.
    ("rockchip,rk3566", Role::GicIncoherent),
    ("rockchip,rk3568", Role::GicIncoherent),
    ("rockchip,rk3582", Role::GicIncoherent),
    ("rockchip,rk3588", Role::GicIncoherent),
    ("rockchip,rk3588s", Role::GicIncoherent),
    ("arm,gic-v2m-frame", Role::MsiFrame),
    ("arm,gic-400", Role::GicV2),
    ("arm,cortex-a15-gic", Role::GicV2),
    ("arm,cortex-a9-gic", Role::GicV2),
    ("arm,cortex-a7-gic", Role::GicV2),
    ("qcom,msm-qgic2", Role::GicV2),
    ("arm,psci", Role::Psci),
    ("arm,psci-0.2", Role::Psci),
    ("arm,psci-1.0", Role::Psci),
    ("arm,pl011", Role::Pl011),
    ("arm,sbsa-uart", Role::SbsaUart),
    ("ns16550", Role::Ns16550),
    ("ns16550a", Role::Ns16550),
    ("snps,dw-apb-uart", Role::Ns16550),
    ("mediatek,mt6577-uart", Role::Ns16550Words),
    ("nvidia,tegra20-uart", Role::Ns16550Words),
    ("ti,am654-uart", Role::Ns16550Words),
    ("amlogic,meson-ao-uart", Role::Soc(SocUart::Meson)),
    ("cdns,uart-r1p12", Role::Soc(SocUart::Cadence)),
    ("fsl,imx6q-uart", Role::Soc(SocUart::Imx)),
    ("fsl,imx7ulp-lpuart", Role::Soc(SocUart::Lpuart)),
    ("fsl,imx8qxp-lpuart", Role::Soc(SocUart::Lpuart)),
    ("marvell,armada-3700-uart", Role::Soc(SocUart::Armada3700)),
    ("brcm,bcm2835-aux-uart", Role::Bcm2835Aux),
    ("brcm,bcm2835-pm", Role::BcmPower),
    ("brcm,bcm2835-pm-wdt", Role::BcmPower),
    ("virtio,mmio", Role::BesideSmmus),
    ("qemu,fw-cfg-mmio", Role::BesideSmmus),
    // An SMMU's event counters: they send their interrupt as a write to any address that their registers name.
    ("arm,smmu-v3-pmcg", Role::BesideSmmus),
    ("arm,smmu-v3", Role::Smmu(SmmuVersion::V3)),
    ("arm,smmu-v1", Role::Smmu(SmmuVersion::V2)),
    ("arm,smmu-v2", Role::Smmu(SmmuVersion::V2)),
    ("arm,mmu-400", Role::Smmu(SmmuVersion::V2)),
    ("arm,mmu-401", Role::Smmu(SmmuVersion::V2)),
    ("arm,mmu-500", Role::Smmu(SmmuVersion::V2)),
    // Of Debian's 6.12: drivers/perf/arm_dsu_pmu.c, drivers/clk/qcom/clk-cpu-8996.c; tegra194-cpufreq.c has no node but `/cpus`.
    ("arm,dsu-pmu", Role::OwnRegisters),
    ("qcom,msm8996-apcc", Role::OwnRegisters),
    ("multiboot,module", Role::OtherModule),
    ("xen,multiboot-module", Role::OtherModule),
    ("multiboot,kernel", Role::KernelModule),
    ("xen,linux-zimage", Role::KernelModule),
    ("multiboot,ramdisk", Role::RamdiskModule),
    ("xen,linux-initrd", Role::RamdiskModule),
];

/// In the names of all of these: `arm,coresight-cpu-debug`, `-etm4x`, `-cti`, `-tmc` and the rest, vendors' own too (Linux `arm/arm,coresight-*.yaml`).
const DEBUG: &[u8] = b"coresight";

impl Role {
    /// The role for the value of a `compatible` property: NUL-terminated strings (DTSpec §2.3.1).
    pub(super) fn of(compatible: &[u8]) -> Self {
        let mut role = Self::Other;
        for string in compatible.split(|b| *b == 0) {
            let known = ROLES.iter().find(|known| known.0.as_bytes() == string);
            let is_debug = || string.windows(DEBUG.len()).any(|part| part == DEBUG);
            let other = || if is_debug() { Self::Debug } else { Self::Other };
            role = role.max(known.map_or_else(other, |known| known.1));
        }
        role
    }

    /// Which boot module a node with this role is, if it is one.
    pub(super) fn module(self) -> Option<ModuleKind> {
        match self {
            Self::KernelModule => Some(ModuleKind::Kernel),
            Self::RamdiskModule => Some(ModuleKind::Ramdisk),
            Self::OtherModule => Some(ModuleKind::Other),
            _ => None,
        }
    }
}

/// Which part of the tree a node lies in: the well-known children of the root with what is below them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Section {
    Devices,
    Cpus,
    Chosen,
    ReservedMemory,
    /// A node for debug or trace of CPUs, wherever it stands, and what is below it.
    Debug,
}

impl Section {
    /// The section of the root's child `name`.
    pub(super) fn of(name: &[u8]) -> Self {
        match position(name, &["cpus", "chosen", "reserved-memory"]) {
            Some(0) => Self::Cpus,
            Some(1) => Self::Chosen,
            Some(2) => Self::ReservedMemory,
            _ => Self::Devices,
        }
    }
}

/// Whether a `status` value lets a node be used (DTSpec §2.3.4); a node without one may be.
pub(super) fn is_okay(status: &[u8]) -> bool {
    is_one_of(without_nul(status), &["okay", "ok"])
}

/// Whether a child of `/cpus` is a CPU: by type, or in older trees by name.
pub(super) fn is_cpu(name: &[u8], device_type: &[u8]) -> bool {
    let base_name = name.split(|b| *b == b'@').next().unwrap_or_default();
    is_one_of(base_name, &["cpu"]) || is_one_of(without_nul(device_type), &["cpu"])
}

/// Whether a child of the root is memory (DTSpec §3.4).
pub(super) fn is_memory(device_type: &[u8]) -> bool {
    is_one_of(without_nul(device_type), &["memory"])
}

/// Which of `words` `text` is. Never inlined: the target compares with a constant byte by byte, in line.
#[inline(never)]
pub(super) fn position(text: &[u8], words: &[&str]) -> Option<usize> {
    words.iter().position(|word| word.as_bytes() == text)
}

/// Whether `text` is one of `words`.
pub(super) fn is_one_of(text: &[u8], words: &[&str]) -> bool {
    position(text, words).is_some()
}

/// The values of the properties called `names`, in the order of `names`. As for Linux, the first of a name counts.
pub(super) fn select<'a, const N: usize>(
    mut properties: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    names: [&str; N],
) -> [Option<&'a [u8]>; N] {
    let mut values = [None; N];
    fill(&mut properties, &names, &mut values);
    values
}

fn fill<'a>(
    properties: &mut dyn Iterator<Item = (&'a [u8], &'a [u8])>,
    names: &[&str],
    values: &mut [Option<&'a [u8]>],
) {
    for (name, value) in properties {
        if let Some(place) = position(name, names).and_then(|at| values.get_mut(at)) {
            place.get_or_insert(value);
        }
    }
}

/// A string property's value up to its NUL, or all of it if that is missing.
pub(super) fn without_nul(value: &[u8]) -> &[u8] {
    value.split(|b| *b == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_telling_compatible_string_decides_in_any_order() {
        assert_eq!(Role::of(b"multiboot,module\0multiboot,kernel\0"), Role::KernelModule);
        assert_eq!(Role::of(b"arm,psci-0.2\0arm,psci-1.0\0arm,psci\0"), Role::Psci);
        assert_eq!(Role::of(b"arm,pl011\0arm,primecell\0"), Role::Pl011);
        assert_eq!(Role::of(b""), Role::Other);
        assert_eq!(Role::of(b"qcom,coresight-tpdm\0arm,primecell\0"), Role::Debug);
    }
}
