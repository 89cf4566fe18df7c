//! Machines whose SMMUs the core drives: what leaves the host's windows and the host's tree, and what stays.
#![forbid(unsafe_code)]

use std::string::String;

use super::build::Build;
use super::*;

const BANK: &[u32] = &[0, 0x8000_0000, 0x1000];
const TAKEN: HostEdits = HostEdits { smmus_taken: true, ..NO_EDITS };
const CONFINED: &str = "corevisor,devices-confined";
const GIC_CONFINED: &str = "corevisor,gic-confined";

/// An SMMU with its counters, a bus and a device behind it, virtio and fw_cfg behind it and beside it.
fn machine() -> Vec<u8> {
    Build::root()
        .memory("memory", BANK)
        .rest()
        .node("smmu@10000", "arm,smmu-v3", &[("reg", &[0, 0x1_0000, 0x2_0000]), ("phandle", &[7])])
        .node("pmcg@12000", "arm,smmu-v3-pmcg", &[("reg", &[0, 0x4_2000, 0x1000])])
        .begin("soc")
        .cells("ranges", &[])
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[1])
        .cells("iommu-map", &[0, 7, 0, 0x1_0000])
        .cells("msi-map", &[0, 8, 0, 0x1_0000])
        .cells("iommu-map-mask", &[0xffff])
        .node("behind@50000", "virtio,mmio", &[("reg", &[0, 0x5_0000, 0x200]), ("iommus", &[7, 1])])
        .node("beside@51000", "virtio,mmio", &[("reg", &[0, 0x5_1000, 0x200])])
        .node("beside@51200", "virtio,mmio", &[("reg", &[0, 0x5_1200, 0x200])])
        .node("disk@53000", "some,disk", &[("reg", &[0, 0x5_3000, 0x1000]), ("iommus", &[7, 2]), ("last", &[5])])
        .end()
        .node("fw-cfg@60000", "qemu,fw-cfg-mmio", &[("reg", &[0, 0x6_0000, 0x18])])
        .node("smmu@70000", "arm,smmu-v2", &[("reg", &[0, 0x7_0000, 0x1000])])
        .begin("smmu@80000")
        .text("compatible", "arm,smmu-v3")
        .text("status", "disabled")
        .cells("reg", &[0, 0x8_0000, 0x2_0000])
        .end()
        .blob()
}

/// Paths of all nodes with the names of their properties.
fn outline(blob: &[u8]) -> Vec<String> {
    let read = with_tree(blob, |tree, _| {
        let mut names = Vec::new();
        let outline = tree.nodes().map(|(node, depth)| {
            names.truncate(depth);
            names.push(node.name);
            let properties: Vec<_> = node.properties().map(|property| property.name).collect();
            std::format!("/{}: {}", names[1..].join("/"), properties.join(" "))
        });
        outline.collect()
    });
    read.unwrap()
}

#[test]
fn the_hosts_tree_has_neither_smmus_nor_devices_beside_them_and_nobody_stands_behind_one() {
    let host = outline(&edited(&machine(), &TAKEN).unwrap());
    let starting = |path: &str| host.iter().filter(|line| line.starts_with(path)).collect::<Vec<_>>();
    assert!(["/smmu@", "/pmcg@", "/soc/beside@", "/fw-cfg@"].into_iter().all(|path| starting(path).is_empty()));
    assert_eq!(starting("/soc:"), ["/soc: ranges #address-cells #size-cells msi-map"]);
    assert_eq!(starting("/soc/behind@50000"), ["/soc/behind@50000: compatible reg"]);
    assert_eq!(starting("/soc/disk@53000"), ["/soc/disk@53000: compatible reg last"]);
    assert_eq!(starting("/hypervisor"), [&std::format!("/hypervisor: compatible version {CONFINED}")]);
}

#[test]
fn the_hosts_tree_says_of_devices_and_of_the_gic_each_by_itself_whether_they_are_confined() {
    let nothing = HostEdits { gic_taken: false, ..NO_EDITS };
    let both = HostEdits { gic_taken: true, ..TAKEN };
    for (edits, said) in [
        (nothing, std::string::String::from("/hypervisor: compatible version")),
        (TAKEN, std::format!("/hypervisor: compatible version {CONFINED}")),
        (HostEdits { gic_taken: true, ..NO_EDITS }, std::format!("/hypervisor: compatible version {GIC_CONFINED}")),
        (both, std::format!("/hypervisor: compatible version {CONFINED} {GIC_CONFINED}")),
    ] {
        let host = outline(&edited(&machine(), &edits).unwrap());
        assert!(host.contains(&said), "{host:#?}");
    }
}

#[test]
fn what_says_that_a_node_is_behind_an_smmu_goes_whatever_the_node_is() {
    let behind = [("iommus", &[7, 1][..]), ("iommu-map", &[0, 7, 0, 1])];
    let blob = Build::root()
        .cells("iommu-map-mask", &[1])
        .memory("memory", BANK)
        .rest()
        .node("chosen", "", &behind)
        .node("psci", "arm,psci", &[&behind[..], &[("method", &[0x736d_6300])]].concat())
        .node("timer", "arm,armv8-timer", &[&behind[..], &[("interrupts", &[1; 12])]].concat())
        .node("other", "", &behind);
    let host = outline(&edited(&blob.blob(), &TAKEN).unwrap());
    assert!(host.iter().all(|line| !line.contains("iommu")), "{host:#?}");
    assert!(
        ["/chosen: ", "/psci: ", "/timer: ", "/other: "].iter().all(|path| host.iter().any(|l| l.starts_with(path)))
    );
}

#[test]
fn where_the_core_drives_no_smmu_nothing_of_this_changes() {
    for (name, blob) in machines().into_iter().chain([("built", &machine()[..])]) {
        let host = outline(&edited(blob, &NO_EDITS).unwrap());
        let kept =
            |line: &&String| ["smmu", "pmcg", "iommu", "virtio", "fw-cfg"].iter().any(|word| line.contains(word));
        let before = outline(blob);
        assert!(before.iter().filter(kept).eq(host.iter().filter(kept)), "{name}");
        assert!(host.iter().all(|line| !line.contains(CONFINED)), "{name}");
    }
}

#[test]
fn a12_windows_lose_smmus_and_what_is_beside_them_when_they_are_taken_and_not_before() {
    let mut machine = described(&machine()).unwrap();
    assert_eq!(machine.smmus.len(), 2, "the disabled one is nobody's");
    let beside = [range(0x4_2000, 0x4_3000), range(0x5_1000, 0x5_2000), range(0x6_0000, 0x6_1000)];
    assert_eq!(*machine.beside_smmus, [&beside[..], &[range(0x8_0000, 0xa_0000)]].concat());
    let others = [range(0x1000, 0x4000), range(0x5_0000, 0x5_1000), range(0x5_3000, 0x5_4000)];
    let before = [
        &others[..1],
        &[range(0x1_0000, 0x3_0000), beside[0], range(0x5_0000, 0x5_2000), others[2], beside[2]],
        &[range(0x7_0000, 0x7_1000), range(0x8_0000, 0xa_0000)],
    ];
    assert_eq!(*machine.windows, before.concat());
    machine.take_smmus().unwrap();
    assert_eq!(*machine.windows, others);
    machine.take_smmus().unwrap();
    assert_eq!(*machine.windows, others, "a second time is the same");
}

#[test]
fn qemus_machine_with_an_smmu_keeps_its_pci_bus_and_its_its() {
    let blob = dtb!("virt-gicv3-smmu");
    let mut machine = described(blob).unwrap();
    let (fw_cfg, virtio, smmu) = (range(0x902_0000, 0x902_1000), range(0xa00_0000, 0xa00_4000), machine.smmus[0].range);
    assert_eq!(
        (&machine.beside_smmus[..], &machine.doorbells[..]),
        (&[fw_cfg, virtio][..], &[range(0x809_0000, 0x809_1000)][..])
    );
    let reaches =
        |machine: &MachineDescription, at: u64| machine.windows.iter().any(|window| window.contains(Pa::new(at)));
    let (gone, kept) =
        ([fw_cfg, virtio, smmu].map(|range| range.base().raw()), [0x809_0000, 0x900_0000, 0x901_0000, 0x1000_0000]);
    assert!(gone.into_iter().chain(kept).all(|at| reaches(&machine, at)));
    machine.take_smmus().unwrap();
    assert!(kept.into_iter().all(|at| reaches(&machine, at)) && !gone.into_iter().any(|at| reaches(&machine, at)));

    let host = outline(&edited(blob, &TAKEN).unwrap());
    assert!(host.iter().all(|line| ["smmu", "virtio", "fw-cfg", "iommu"].iter().all(|word| !line.contains(word))));
    assert!(host.iter().any(|line| line.starts_with("/pcie@10000000: ") && line.contains("msi-map")));
    assert!(host.iter().any(|line| line.starts_with("/intc@8000000/its@8080000: ")));
    with_tree(&edited(blob, &TAKEN).unwrap(), |_, after| {
        assert!(after.smmus.is_empty() && after.beside_smmus.is_empty());
        assert_eq!((after.doorbells.len(), after.console), (1, machine.console));
    })
    .unwrap();
}

#[test]
fn doorbells_are_the_pages_that_devices_write_interrupts_to() {
    assert_eq!(*described(dtb!("virt-gicv2")).unwrap().doorbells, [range(0x802_0000, 0x802_1000)]);
    assert_eq!(*described(dtb!("virt-gicv3")).unwrap().doorbells, [range(0x809_0000, 0x809_1000)]);
    assert!(described(dtb!("raspi4b-qemu")).unwrap().doorbells.is_empty());
    let frames = |reg: &[u32], status: &str, count: usize| {
        let frame = |build: Build| {
            build.begin("v2m").text("compatible", "arm,gic-v2m-frame").text("status", status).cells("reg", reg).end()
        };
        described(&(0..count).fold(Build::root().memory("memory", BANK).rest(), |build, _| frame(build)).blob())
    };
    let cross = frames(&[0, 0x9_0fe0, 0x1000], "okay", 1).unwrap();
    assert_eq!(*cross.doorbells, [range(0x9_1000, 0x9_2000)], "the register's page, not the frame's first");
    assert!(frames(&[0, 0x9_0000, 0x1000], "disabled", 1).unwrap().doorbells.is_empty());
    assert_eq!(frames(&[], "okay", 1).unwrap_err().reason, Reason::BadProperty("reg"));
    let many = frames(&[0, 0x9_0000, 0x1000], "okay", 17).unwrap_err();
    assert_eq!(many.reason, Reason::TooMany("doorbells for interrupts of devices"));
}

#[test]
fn more_windows_beside_smmus_than_there_is_room_for_are_an_error_that_names_them() {
    let blob = (0..33).fold(Build::root().memory("memory", BANK).rest(), |build, n| {
        build.node("virtio", "virtio,mmio", &[("reg", &[1, n << 16, 0x200])])
    });
    assert_eq!(described(&blob.blob()).unwrap_err().reason, Reason::TooMany("windows of devices beside SMMUs"));
}
