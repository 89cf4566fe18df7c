//! What is firmware's, and what of it the host keeps.
#![forbid(unsafe_code)]

use std::string::String;

use super::build::Build;
use super::*;

/// `blob` described, without what is withheld when the boot loader left `loaded` in memory.
fn withheld(blob: &[u8], loaded: &[PhysRange]) -> Result<MachineDescription, DeviceTreeError> {
    with_tree(blob, |tree, description| {
        let mut machine = description.clone();
        withhold(tree, &mut machine, loaded).map(|()| machine)
    })?
}

/// 16 MiB of RAM at 2 GiB; `reserve` adds the children of `/reserved-memory`, `more` nodes of the root.
fn machine(reserve: impl FnOnce(Build) -> Build, more: impl FnOnce(Build) -> Build) -> Build {
    let build = Build::root().memory("memory", &[0, 0x8000_0000, 0x100_0000]).rest();
    let build = build.begin("reserved-memory").cells("#address-cells", &[2]).cells("#size-cells", &[1]);
    more(reserve(build.cells("ranges", &[])).end())
}

const RAM: PhysRange = PhysRange::between(Pa::new(0x8000_0000), Pa::new(0x8100_0000));

fn reaches(machine: &MachineDescription, at: u64) -> (bool, bool) {
    let held = |set: &[PhysRange]| set.iter().any(|range| range.contains(Pa::new(at)));
    (held(&machine.ram), held(&machine.windows))
}

#[test]
fn what_is_reserved_and_no_drivers_is_nobodys() {
    let blob = machine(
        |build| {
            build
                .node("tf-a@80010000", "", &[("reg", &[0, 0x8001_0000, 0x1_0800]), ("no-map", &[])])
                .node("secmon@80040000", "", &[("reg", &[0, 0x8004_0000, 0x1000]), ("no-map", &[]), ("phandle", &[7])])
                .node("splash@80050000", "", &[("reg", &[0, 0x8005_0000, 0x1000])])
        },
        |build| build.node("device", "x", &[("phandle", &[8]), ("other-region", &[7])]),
    );
    let mut blob = blob;
    blob.reservations.push((0x8000_0000, 0x1000));
    let machine = withheld(&blob.blob(), &[]).unwrap();
    let gone = [
        range(0x8000_0000, 0x8000_1000),
        range(0x8001_0000, 0x8002_1000),
        range(0x8004_0000, 0x8004_1000),
        range(0x8005_0000, 0x8005_1000),
    ];
    assert_eq!(*machine.withheld, gone);
    assert_eq!(machine.set_aside, gone.iter().map(|range| range.size()).sum());
    for range in gone {
        assert_eq!(reaches(&machine, range.base().raw()), (false, false), "{range}");
        assert_eq!(reaches(&machine, range.end().raw() - 1), (false, false), "{range}");
    }
    assert_eq!(reaches(&machine, 0x8000_1000), (true, false));
    assert_eq!(reaches(&machine, 0x80ff_ffff), (true, false));
}

#[test]
fn a_drivers_no_map_memory_is_a_window_without_records_and_its_other_memory_is_ram() {
    let blob = machine(
        |build| {
            build
                .node("dsp@80100000", "", &[("reg", &[0, 0x8010_0000, 0x1000]), ("no-map", &[]), ("phandle", &[7])])
                .node("log@80200000", "ramoops", &[("reg", &[0, 0x8020_0000, 0x1000]), ("no-map", &[])])
                .node("log@80300000", "ramoops", &[("reg", &[0, 0x8030_0000, 0x1000])])
                .node("pool@80400000", "", &[("reg", &[0, 0x8040_0000, 0x1000]), ("phandle", &[9])])
                .node("off@80500000", "", &[("reg", &[0, 0x8050_0000, 0x1000]), ("no-map", &[]), ("phandle", &[11])])
                .node("far@1c0000000", "x", &[("reg", &[1, 0xc000_0000, 0x170]), ("no-map", &[])])
        },
        |build| {
            let build = build.node("coprocessor", "x", &[("memory-region", &[9, 7])]);
            build.begin("off").text("status", "disabled").cells("memory-region", &[11]).end()
        },
    );
    let machine = withheld(&blob.blob(), &[]).unwrap();
    let found = [0x8010_0000, 0x8020_0000, 0x8030_0000, 0x8040_0000, 0x8050_0000, 0x1_c000_0000];
    let found = found.map(|at| reaches(&machine, at));
    let (window, ram, nobodys) = ((false, true), (true, false), (false, false));
    assert_eq!(found, [window, window, ram, ram, nobodys, window]);
    assert_eq!(*machine.withheld, [range(0x8050_0000, 0x8050_1000)]);
    assert_eq!(machine.set_aside, 0x3000, "only what was RAM");
}

#[test]
fn what_holds_the_boot_loaders_files_is_ram_again_unless_it_says_no_map() {
    let mut blob = machine(
        |build| build.node("tz@80600000", "", &[("reg", &[0, 0x8060_0000, 0x2000]), ("no-map", &[])]),
        |build| {
            build.node("chosen", "", &[("linux,initrd-start", &[0x8020_0000]), ("linux,initrd-end", &[0x8030_0000])])
        },
    );
    blob.reservations = vec![(0x8020_0000, 0x10_0000), (0x8040_0000, 0x8000), (0x8050_0000, 0x1000)];
    let loaded = [range(0x8040_0100, 0x8040_0200), range(0x8060_0000, 0x8060_1000), range(0x8050_0000, 0x8050_0000)];
    let machine = withheld(&blob.blob(), &loaded).unwrap();
    assert_eq!(*machine.withheld, [range(0x8050_0000, 0x8050_1000), range(0x8060_0000, 0x8060_2000)]);
}

#[test]
fn a_devices_registers_in_memory_that_is_nobodys_stay_a_window() {
    let blob = machine(
        |build| build.node("splash@80700000", "", &[("reg", &[0, 0x8070_0000, 0x10_0000]), ("no-map", &[])]),
        |build| {
            build
                .node("framebuffer@80700000", "simple-framebuffer", &[("reg", &[0, 0x8070_0000, 0x4000])])
                .node("all@80000000", "x", &[("reg", &[0, 0x8000_0000, 0x100_0000])])
                .begin("off@80780000")
                .text("status", "disabled")
                .cells("reg", &[0, 0x8078_0000, 0x1000])
                .end()
        },
    );
    let machine = withheld(&blob.blob(), &[]).unwrap();
    assert_eq!([0x8070_3fff, 0x8070_4000, 0x8078_0000].map(|at| reaches(&machine, at).1), [true, false, false]);
    assert!(machine.windows.iter().all(|window| machine.ram.iter().all(|bank| !bank.overlaps(*window))));
}

#[test]
fn the_page_of_the_pis_spin_tables_is_nobodys_and_so_is_one_that_is_not_reserved() {
    for blob in [dtb!("raspi4b-qemu"), &without_reservations(dtb!("raspi4b-qemu"))] {
        let machine = withheld(blob, &[]).unwrap();
        assert_eq!((&machine.withheld[..], machine.set_aside), (&[range(0, 0x1000)][..], 0x1000));
        assert_eq!(*machine.ram, [range(0x1000, 0x3c00_0000)]);
        let host = edited(blob, &HostEdits { core_memory: &machine.withheld, ..NO_EDITS }).unwrap();
        assert_eq!(*described(&host).unwrap().ram, *machine.ram);
    }
}

/// Nops lose reservations, which the builder does not copy.
fn without_reservations(blob: &[u8]) -> Vec<u8> {
    super::build::with_nops(blob, 1)
}

#[test]
fn where_nothing_is_reserved_nothing_changes_and_where_all_is_there_is_no_machine() {
    for (name, blob) in machines().into_iter().filter(|(name, _)| !name.starts_with("raspi")) {
        let (before, after) = (described(blob).unwrap(), withheld(blob, &[]).unwrap());
        assert_eq!(std::format!("{before:?}"), std::format!("{after:?}"), "{name}");
    }
    let mut blob = machine(|build| build, |build| build);
    blob.reservations.push((RAM.base().raw(), RAM.size()));
    assert_eq!(withheld(&blob.blob(), &[]).unwrap_err().reason, Reason::NoMemory);
}

#[test]
fn registers_for_debug_and_trace_of_cpus_are_in_no_window_and_in_no_tree_of_the_hosts() {
    let frame = |name: &'static str, compatible: &'static str, base: u32| {
        move |build: Build| {
            build
                .begin(name)
                .raw("compatible", [compatible.as_bytes(), b"\0arm,primecell\0"].concat().as_slice())
                .cells("#address-cells", &[2])
                .cells("#size-cells", &[1])
                .cells("ranges", &[])
                .cells("reg", &[0, base, 0x1000])
        }
    };
    let blob = machine(
        |build| build,
        |build| {
            let build = build.node("fabric", "simple-bus", &[("reg", &[0, 0x4000_0000, 0x10_0000])]);
            let build = frame("debug@40001000", "arm,coresight-cpu-debug", 0x4000_1000)(build).end();
            let build = frame("etm@40200000", "arm,coresight-etm4x", 0x4020_0000)(build);
            let build = build.node("part@40300000", "x", &[("reg", &[0, 0x4030_0000, 0x1000])]).end();
            let off = frame("cti@40400000", "arm,coresight-cti", 0x4040_0000)(build);
            let build = off.text("status", "disabled").end();
            build.node("uart@40500000", "arm,primecell", &[("reg", &[0, 0x4050_0000, 0x1000])])
        },
    );
    let blob = blob.blob();
    let windows = withheld(&blob, &[]).unwrap().windows;
    let after = [range(0x4000_0000, 0x4000_1000), range(0x4000_2000, 0x4010_0000), range(0x4050_0000, 0x4050_1000)];
    assert_eq!(windows[1..], after);
    let host = edited(&blob, &NO_EDITS).unwrap();
    let names = with_tree(&host, |tree, _| tree.nodes().map(|(node, _)| String::from(node.name)).collect::<Vec<_>>());
    let names = names.unwrap();
    assert!(names.iter().any(|name| name == "uart@40500000") && names.iter().any(|name| name == "fabric"));
    assert!(!["debug@", "etm@", "part@", "cti@"].iter().any(|gone| names.iter().any(|name| name.starts_with(gone))));
}
