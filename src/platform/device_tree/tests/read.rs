//! What the reader learns from correct trees.
#![forbid(unsafe_code)]

use super::build::{Build, as_version_16, with_nops};
use super::*;

#[test]
fn virt_with_gicv2_is_read_in_full() {
    let machine = described(dtb!("virt-gicv2")).unwrap();
    assert_eq!(*machine.ram, [range(0x4000_0000, 0x6000_0000)]);
    let cpu = |mpidr| Cpu { mpidr: Mpidr::new(mpidr), enable_method: EnableMethod::Psci };
    assert_eq!(*machine.cpus, [cpu(0), cpu(1)]);
    let psci = machine.psci.unwrap();
    assert_eq!(psci.conduit, PsciConduit::Smc);
    let Some(Gic::V2 { gicd, gicc, gich, gicv }) = machine.gic else { panic!("{:?}", machine.gic) };
    assert_eq!((gicd, gicc), (range(0x800_0000, 0x801_0000), range(0x801_0000, 0x802_0000)));
    assert_eq!((gich, gicv), (Some(range(0x803_0000, 0x804_0000)), Some(range(0x804_0000, 0x805_0000))));
    assert_eq!(machine.console, Some(Console::Pl011 { base: Pa::new(0x900_0000) }));
    let timer = machine.timer.unwrap();
    assert_eq!((timer.cells.len(), timer.cells_per_interrupt, timer.cells[4]), (12, 3, 14));
    assert_eq!(machine.bcm_power, None);
}

#[test]
fn windows_hold_devices_flash_and_pci_but_neither_ram_nor_gich_and_gicv() {
    let machine = described(dtb!("virt-gicv2")).unwrap();
    let reaches = |addr| machine.windows.iter().any(|window| window.contains(Pa::new(addr)));
    let flash_uart_virtio_pci = [0, 0x7ff_ffff, 0x900_0000, 0xa00_0000, 0xa00_3fff, 0x1000_0000, 0x3eff_0000];
    assert!(flash_uart_virtio_pci.into_iter().all(reaches));
    assert!([0x40_1000_0000, 0x80_0000_0000, 0xff_ffff_ffff].into_iter().all(reaches), "ECAM and 64-bit window");
    assert!(![0x4000_0000, 0x803_0000, 0x804_ffff, 0x900_1000, 0xa00_4000].into_iter().any(reaches));
}

#[test]
fn virt_with_gicv3_has_redistributors_its_and_smmu() {
    let machine = described(dtb!("virt-gicv3-smmu")).unwrap();
    let Some(Gic::V3 { gicd, redistributors, stride, gicc, gich, gicv, its }) = machine.gic else {
        panic!("{:?}", machine.gic)
    };
    assert_eq!((gicd, &*redistributors), (range(0x800_0000, 0x801_0000), &[range(0x80a_0000, 0x900_0000)][..]));
    assert_eq!((stride, gicc, gich, gicv), (None, None, None, None));
    assert_eq!(*its, [range(0x808_0000, 0x80a_0000)]);
    assert!(machine.smmus_serve);
    assert_eq!(
        *machine.smmus,
        [Smmu { version: SmmuVersion::V3, range: range(0x905_0000, 0x907_0000), coherent: true }]
    );
}

#[test]
fn numa_banks_that_touch_are_one_and_boot_modules_and_arguments_are_found() {
    with_tree(dtb!("virt-numa-modules"), |tree, machine| {
        assert_eq!(*machine.ram, [range(0x4000_0000, 0x1_4000_0000)]);
        let chosen = &machine.chosen;
        assert_eq!(chosen.bootargs.map(|text| tree.text(text)), Some("console=ttyAMA0 x=1"));
        assert_eq!(chosen.initrd, Some(range(0x4800_0000, 0x4810_0000)));
        let [ramdisk, kernel] = *chosen.modules else { panic!("{:?}", chosen.modules) };
        assert_eq!((ramdisk.kind, ramdisk.bootargs), (ModuleKind::Ramdisk, None));
        assert_eq!((kernel.kind, kernel.range), (ModuleKind::Kernel, range(0x6000_0000, 0x6010_0000)));
        assert_eq!(kernel.bootargs.map(|text| tree.text(text)), Some("guest args"));
    })
    .unwrap();
}

#[test]
fn the_pi_has_spin_tables_buses_with_ranges_a_mini_uart_and_a_reserved_page() {
    let machine = described(dtb!("raspi4b-qemu")).unwrap();
    assert_eq!(*machine.ram, [range(0, 0x3c00_0000)]);
    assert_eq!(*machine.reserved, [Reserved { range: range(0, 0x1000), no_map: false, drivers: false, phandle: None }]);
    let methods = machine.cpus.iter().map(|cpu| cpu.enable_method);
    assert!(methods.eq([0xd8, 0xe0, 0xe8, 0xf0].map(|at| EnableMethod::SpinTable { release: Pa::new(at) })));
    assert_eq!(machine.console, Some(Console::Bcm2835Aux { base: Pa::new(0xfe21_5040) }));
    assert_eq!((machine.bcm_power, machine.psci), (Some(Pa::new(0xfe10_0000)), None));
    let Some(Gic::V2 { gicd, gicv: Some(gicv), .. }) = machine.gic else { panic!("{:?}", machine.gic) };
    assert_eq!((gicd, gicv), (range(0xff84_1000, 0xff84_2000), range(0xff84_6000, 0xff84_8000)));
    assert_eq!(machine.windows.last(), Some(&range(0xff84_1000, 0xff84_4000)), "GICD and GICC, not GICH and GICV");
}

#[test]
fn cpus_beyond_the_limit_are_counted_and_left_alone() {
    let machine = described(dtb!("virt-140-cpus")).unwrap();
    assert_eq!((machine.cpus.len(), machine.cpus_ignored), (MAX_CPUS, 140 - MAX_CPUS as u32));
}

#[test]
fn nops_anywhere_and_format_version_16_change_nothing() {
    for (name, blob) in machines() {
        let plain = with_tree(blob, |tree, machine| (tree.blob().to_vec(), std::format!("{machine:?}"))).unwrap();
        for variant in [with_nops(blob, 1), with_nops(blob, 3), as_version_16(blob)] {
            // Nops lose reservations, which the builder does not copy.
            let read = with_tree(&variant, |_, machine| machine.cpus.len()).unwrap();
            assert_eq!(read, described(blob).unwrap().cpus.len(), "{name}");
        }
        let again = with_tree(&as_version_16(blob), |tree, m| (tree.blob().to_vec(), std::format!("{m:?}"))).unwrap();
        assert!(again == plain, "{name}");
    }
}

#[test]
fn a_normalised_tree_normalises_to_itself_in_a_buffer_of_the_promised_size() {
    for (name, blob) in machines() {
        let once = with_tree(blob, |tree, _| tree.blob().to_vec()).unwrap();
        assert!(with_tree(&once, |tree, _| tree.blob() == once).unwrap(), "{name}");
    }
}

#[test]
fn banks_are_sorted_merged_and_trimmed_and_empty_ones_are_none() {
    let machine = described(&Build::machine(&[
        &[0, 0x8000_0000, 0x1000, 0, 0x1800, 0x1000],
        &[0, 0x2800, 0x2000, 0, 0x5_0000, 0],
        &[0x1_0000, 0, 0x1000, 0, 0, 0x1001],
        &[0, 0x9000_0100, 0x200],
    ]));
    let banks =
        [range(0, 0x1000), range(0x2000, 0x4000), range(0x8000_0000, 0x8000_1000), range(1 << 48, (1 << 48) + 0x1000)];
    assert_eq!(*machine.unwrap().ram, banks);
}

#[test]
fn addresses_go_through_every_bus_and_stop_at_one_without_ranges() {
    let blob = Build::root()
        .memory("memory", &[0, 0x8000_0000, 0x1000])
        .rest()
        .begin("soc")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1])
        .cells("ranges", &[0x7e00_0000, 0, 0xfe00_0000, 0x10_0000, 0x4000_0000, 1, 0, 0x1000])
        .node("a", "x", &[("reg", &[0x7e00_1000, 0x10, 0x4000_0800, 0x10_0000, 0x1234, 4])])
        .begin("i2c")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[0])
        .cells("reg", &[0x7e00_3000, 0x100])
        .node("sensor", "x", &[("reg", &[0x7e00_9000])])
        .end()
        .begin("inner")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1])
        .cells("ranges", &[])
        .node("b", "x", &[("reg", &[0x7e00_5000, 1])])
        .end()
        .end()
        .blob();
    let windows = [0xfe00_1000, 0xfe00_3000, 0xfe00_5000, 0x1_0000_0000].map(|base| range(base, base + 0x1000));
    let machine = described(&blob).unwrap();
    assert_eq!(*machine.windows, [&[range(0x1000, 0x4000)], &windows[..]].concat());
}

#[test]
fn reserved_memory_carries_its_flag_and_placed_by_the_system_is_none() {
    let mut build = Build::root()
        .memory("memory", &[0, 0x8000_0000, 0x1000])
        .rest()
        .begin("reserved-memory")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[1])
        .node("secure@1", "", &[("reg", &[0, 0x1_0000, 0x10]), ("no-map", &[])])
        .node("pool", "shared-dma-pool", &[("size", &[0x1000])])
        .end();
    build.reservations.push((0x8000_0000, 0x10));
    let reserved = |base, no_map| Reserved { range: range(base, base + 0x10), no_map, drivers: false, phandle: None };
    assert_eq!(*described(&build.blob()).unwrap().reserved, [reserved(0x8000_0000, false), reserved(0x1_0000, true)]);
}

#[test]
fn the_console_is_found_by_alias_path_and_options_or_not_at_all() {
    let machine = |stdout: &str, compatible: &str| {
        let blob = Build::root()
            .memory("memory", &[0, 0x8000_0000, 0x1000])
            .rest()
            .node(
                "serial@9000",
                compatible,
                &[("reg", &[0, 0x9000, 0x100]), ("reg-shift", &[2]), ("reg-io-width", &[4])],
            )
            .begin("aliases")
            .text("serial0", "/serial@9000")
            .text("loop", "loop")
            .end()
            .begin("chosen")
            .text("stdout-path", stdout)
            .end()
            .blob();
        described(&blob).unwrap().console
    };
    let base = Pa::new(0x9000);
    assert_eq!(
        machine("serial0:115200n8", "snps,dw-apb-uart"),
        Some(Console::Ns16550 { base, reg_shift: 2, io_width: 4 })
    );
    assert_eq!(machine("/serial@9000", "arm,pl011"), Some(Console::Pl011 { base }));
    assert_eq!(machine("/serial@9000", "brcm,bcm2835-aux-uart"), Some(Console::Bcm2835Aux { base }));
    assert!(
        ["loop", "", "/", "//", ":", "none", "/none", "serial0/x"]
            .into_iter()
            .all(|path| machine(path, "arm,pl011").is_none())
    );
}

#[test]
fn a_16550_that_no_driver_fits_is_no_console_and_an_offset_is_part_of_the_base() {
    let machine = |settings: &[(&str, &[u32])]| {
        let properties = [&[("reg", &[0, 0x9000, 0x100][..])][..], settings].concat();
        let blob = Build::root()
            .memory("memory", &[0, 0x8000_0000, 0x1000])
            .rest()
            .node("serial", "ns16550a", &properties)
            .begin("chosen")
            .text("stdout-path", "/serial")
            .end()
            .blob();
        described(&blob).unwrap().console
    };
    let base = Pa::new(0x9004);
    assert_eq!(machine(&[("reg-offset", &[4])]), Some(Console::Ns16550 { base, reg_shift: 0, io_width: 1 }));
    assert_eq!(machine(&[("reg-io-width", &[2])]), None);
    assert_eq!(machine(&[("reg-shift", &[4])]), None);
}

#[test]
fn the_console_is_known_even_if_the_rest_is_refused() {
    let bank: &[u32] = &[0, 0x8000_0000, 0x1000];
    let blob = Build::root().memory("memory@0", bank).memory("memory@1", bank);
    let blob = blob.begin("chosen").text("stdout-path", "/serial").end();
    let blob = blob.node("serial", "arm,pl011", &[("reg", &[0, 0x9000, 0x100])]).blob();
    let mut buffer = vec![0; buffer_size(&blob).unwrap()];
    let tree = DeviceTree::normalise(&blob, &mut buffer).unwrap();
    let mut machine = MachineDescription::empty();
    let error = describe(&tree, &mut machine).unwrap_err();
    assert_eq!(error.place.as_str(), "/memory@1", "the first error counts");
    assert_eq!(machine.console, Some(Console::Pl011 { base: Pa::new(0x9000) }));
}

#[test]
fn a_disabled_cpu_is_skipped_and_an_unknown_method_is_none() {
    let blob = Build::root()
        .memory("memory", &[0, 0x8000_0000, 0x1000])
        .rest()
        .begin("cpus")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[0])
        .begin("cpu@1")
        .cells("reg", &[0xab, 0x10203])
        .text("enable-method", "magic")
        .end()
        .begin("cpu@2")
        .cells("reg", &[0, 2])
        .text("status", "disabled")
        .end()
        .begin("cpu-map")
        .end()
        .end()
        .blob();
    let cpus = described(&blob).unwrap().cpus;
    assert_eq!((cpus.len(), cpus[1].mpidr.raw(), cpus[1].enable_method), (2, 0xab_0001_0203, EnableMethod::None));
}

#[test]
fn a_gicv3_with_all_legacy_frames_keeps_them_apart() {
    let frames: Vec<u32> = (1..=6).flat_map(|n| [0, n << 16, 0x1_0000]).collect();
    let blob = Build::root()
        .memory("memory", &[0, 0x8000_0000, 0x1000])
        .node(
            "gic",
            "arm,gic-v3",
            &[("reg", &frames), ("#redistributor-regions", &[2]), ("redistributor-stride", &[0, 0x2_0000])],
        )
        .rest()
        .blob();
    let machine = described(&blob).unwrap();
    let Some(Gic::V3 { redistributors, stride, gicc, gich, gicv, .. }) = machine.gic else {
        panic!("{:?}", machine.gic)
    };
    let frame = |n: u64| range(n << 16, (n + 1) << 16);
    assert_eq!((&*redistributors, stride), (&[frame(2), frame(3)][..], Some(0x2_0000)));
    assert_eq!((gicc, gich, gicv), (Some(frame(4)), Some(frame(5)), Some(frame(6))));
    let reaches = |frame: PhysRange| machine.windows.iter().any(|window| window.overlaps(frame));
    assert!(reaches(frame(3)) && !reaches(frame(5)) && !reaches(frame(6)));
}

#[test]
fn public_keys_are_whole_keys_and_at_most_four() {
    let keys = |cells: u32| {
        let value: Vec<u32> = (0..cells).map(|n| 0x0101_0101 * (n / 8 + 1)).collect();
        let build = Build::root().memory("memory", &[0, 0x8000_0000, 0x1000]).rest();
        described(&build.node("chosen", "", &[("corevisor,public-keys", &value)]).blob())
            .map(|machine| machine.chosen.public_keys.to_vec())
    };
    assert_eq!(keys(16), Ok(vec![[1; 32], [2; 32]]));
    assert!(keys(0).is_ok_and(|keys| keys.is_empty()) && keys(32).is_ok_and(|keys| keys.len() == 4));
    assert!(keys(9).is_err() && keys(40).is_err());
}

#[test]
fn a_frame_buffer_below_chosen_is_the_hosts_where_it_is_no_ram() {
    let build = Build::root().memory("memory@0", &[0, 0x4000_0000, 0x100_0000]);
    let build = build.begin("chosen").cells("#address-cells", &[2]).cells("#size-cells", &[1]).raw("ranges", &[]);
    let build = build.node("framebuffer@7f", "simple-framebuffer", &[("reg", &[0, 0x7f00_0000, 0x80_0000])]);
    let build = build.node("framebuffer@40", "simple-framebuffer", &[("reg", &[0, 0x4080_0000, 0x1000])]);
    let machine = described(&build.end().rest().blob()).unwrap();
    let reaches = |addr| machine.windows.iter().any(|window| window.contains(Pa::new(addr)));
    assert!(reaches(0x7f00_0000) && reaches(0x7f7f_ffff) && !reaches(0x7f80_0000));
    assert!(!reaches(0x4080_0000), "RAM is no window");
}

#[test]
fn an_its_that_is_switched_off_is_in_nobodys_reach() {
    let windows = |status: &str| {
        let build = Build::root().memory("memory@0", &[0, 0x4000_0000, 0x100_0000]).rest().begin("its");
        let build = build.text("compatible", "arm,gic-v3-its").text("status", status);
        let blob = build.cells("reg", &[0, 0x1020_0000, 0x2_0000]).end().blob();
        described(&blob).unwrap().windows.iter().any(|window| window.contains(Pa::new(0x1020_0000)))
    };
    assert!(windows("okay") && !windows("disabled"));
}

#[test]
fn a_gic_that_does_not_look_into_caches_is_known_by_it_its_its_or_the_machine() {
    let machine_of = |compatible: &str, gic: &[(&str, &[u32])], its: &[(&str, &[u32])]| {
        let build =
            Build::root().text("compatible", compatible).memory("memory@0", &[0, 0x4000_0000, 0x100_0000]).begin("gic");
        let build = build.text("compatible", "arm,gic-v3").cells("#address-cells", &[2]).cells("#size-cells", &[1]);
        let build = build.cells("reg", &[0, 0x1000_0000, 0x1_0000, 0, 0x1010_0000, 0x2_0000]).raw("ranges", &[]);
        let build = gic.iter().fold(build, |build, (name, cells)| build.cells(name, cells));
        let reg: &[u32] = &[0, 0x1020_0000, 0x2_0000];
        let build = build.node("its", "arm,gic-v3-its", &[&[("reg", reg)], its].concat()).end();
        described(&build.rest().blob()).unwrap().gic_incoherent
    };
    let machine = |gic, its| machine_of("some,board", gic, its);
    assert!(machine_of("radxa,rock-5b\0rockchip,rk3588", &[], &[]));
    assert!(!machine(&[], &[]));
    assert!(machine(&[("dma-noncoherent", &[])], &[]));
    assert!(machine(&[], &[("dma-noncoherent", &[])]));
}
