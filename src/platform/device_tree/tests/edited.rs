//! The host's tree, read back.
#![forbid(unsafe_code)]

use std::{process::Command, string::String};

use super::build::Build;
use super::*;

/// The core's memory in the tests: 2 MiB at the start of the first bank, and one page in its middle.
fn core_memory(machine: &MachineDescription) -> [PhysRange; 2] {
    let (base, end) = (machine.ram[0].base().raw(), machine.ram[0].end().raw());
    let middle = ((base + end) / 2) & !0xfff;
    [range(middle, middle + 1), range(base, base + 0x20_0000)]
}

fn property<'a>(tree: &'a DeviceTree, path: &str, name: &str) -> Option<&'a [u8]> {
    tree.fdt().find_node(path)?.property(name).map(|property| property.value)
}

#[test]
fn the_hosts_tree_of_every_machine_reads_back_confined() {
    for (name, blob) in machines() {
        let before = described(blob).unwrap();
        let core = core_memory(&before);
        let edits = HostEdits {
            core_memory: &core,
            initrd: Some(range(0x5000_0000, 0x5000_1234)),
            bootargs: Some("quiet corevisor.x=1"),
            smmus_taken: false,
            gic_taken: false,
            seed: Some([0x5e; 32]),
            version: "1.2.3",
        };
        let host = edited(blob, &edits).unwrap();
        with_tree(&host, |tree, after| {
            assert!(after.ram.iter().all(|bank| core.iter().all(|core| !bank.overlaps(*core))), "{name}");
            let size = |ram: &[PhysRange]| ram.iter().map(|bank| bank.size()).sum::<u64>();
            assert_eq!(size(&before.ram) - size(&after.ram), 0x20_1000, "{name}");
            assert!(after.cpus.iter().all(|cpu| cpu.enable_method == EnableMethod::Psci), "{name}");
            assert_eq!((after.cpus.len(), after.cpus_ignored), (before.cpus.len(), before.cpus_ignored), "{name}");
            assert_eq!(after.psci.unwrap().conduit, PsciConduit::Smc);
            assert_eq!(property(tree, "/psci", "cpu_on"), None, "{name}");
            assert_eq!(after.gic.unwrap().virtualization_frames().count(), 0, "{name}");
            assert_eq!(after.timer.unwrap().cells.len(), 6, "{name}");
            assert_eq!(after.timer.unwrap().cells[..], before.timer.unwrap().cells[..6], "{name}");
            assert_eq!((after.console, &after.reserved[..]), (before.console, &before.reserved[..]), "{name}");
            assert_eq!(after.chosen.initrd, edits.initrd, "{name}");
            assert_eq!(after.chosen.bootargs.map(|text| tree.text(text)), edits.bootargs, "{name}");
            assert!(after.chosen.modules.is_empty(), "{name}");
            assert_eq!(property(tree, "/hypervisor", "compatible"), Some(&b"corevisor\0"[..]), "{name}");
            assert_eq!(property(tree, "/hypervisor", "version"), Some(&b"1.2.3\0"[..]), "{name}");
            assert_eq!(tree.blob(), host, "{name}: what the editor writes is compact");
        })
        .unwrap();
    }
}

#[test]
fn everything_that_no_edit_concerns_is_the_boot_loaders() {
    let paths = |tree: &DeviceTree| {
        let mut names = Vec::new();
        let mut list = Vec::new();
        for (node, depth) in tree.nodes() {
            names.truncate(depth);
            names.push(node.name);
            let touched = ["cpu@", "psci", "memory", "timer", "intc", "interrupt-controller", "hypervisor", "chosen"];
            let inside = names.contains(&"chosen") || names.contains(&"hypervisor");
            if !inside && (!touched.iter().any(|word| node.name.starts_with(word)) || node.name.contains("memory-")) {
                let values = node.properties().map(|p| std::format!("{}={:?}", p.name, p.value));
                list.push(std::format!("{}: {:?}", names.join("/"), values.collect::<Vec<_>>()));
            }
        }
        list
    };
    for (name, blob) in machines() {
        let before = with_tree(blob, |tree, _| paths(tree)).unwrap();
        let after = with_tree(&edited(blob, &NO_EDITS).unwrap(), |tree, _| paths(tree)).unwrap();
        assert!(before.len() > 15 && before == after, "{name}: {before:#?} {after:#?}");
    }
}

#[test]
fn without_edits_arguments_and_initrd_stay_and_modules_and_the_seed_of_the_core_go() {
    let blob = dtb!("virt-numa-modules");
    let seed = with_tree(blob, |_, machine| machine.chosen.rng_seed).unwrap();
    assert!(seed.is_some_and(|seed| seed != [0; 32]));
    with_tree(&edited(blob, &NO_EDITS).unwrap(), |tree, machine| {
        assert_eq!((property(tree, "/chosen", "rng-seed"), machine.chosen.rng_seed), (None, None));
        assert_eq!(property(tree, "/chosen", "stdout-path"), Some(&b"/pl011@9000000\0"[..]));
        assert_eq!(machine.chosen.bootargs.map(|text| tree.text(text)), Some("console=ttyAMA0 x=1"));
        assert_eq!(machine.chosen.initrd, Some(range(0x4800_0000, 0x4810_0000)));
        assert!(machine.chosen.modules.is_empty());
    })
    .unwrap();
}

#[test]
fn the_host_gets_a_seed_of_its_own_where_there_was_one_and_where_there_was_none() {
    let given = [0x5e; 32];
    for (name, blob) in machines() {
        let host = edited(blob, &HostEdits { seed: Some(given), ..NO_EDITS }).unwrap();
        with_tree(&host, |tree, machine| {
            assert_eq!(property(tree, "/chosen", "rng-seed"), Some(&given[..]), "{name}");
            assert_eq!(machine.chosen.rng_seed, Some(given), "{name}");
        })
        .unwrap();
    }
}

#[test]
fn of_two_nodes_chosen_the_first_counts_and_the_host_sees_no_other() {
    let chosen = |build: Build, seed: u8| build.begin("chosen").raw("rng-seed", &[seed; 32]).end();
    let memory = Build::root().memory("memory@0", &[0, 0x8000_0000, 0x1_0000]);
    let blob = chosen(chosen(memory, 1).rest(), 2).blob();
    assert_eq!(with_tree(&blob, |_, machine| machine.chosen.rng_seed).unwrap(), Some([1; 32]));
    let host = edited(&blob, &HostEdits { seed: Some([3; 32]), ..NO_EDITS }).unwrap();
    let holds = |seed: u8| host.windows(32).any(|bytes| bytes == [seed; 32]);
    assert_eq!([1, 2, 3].map(holds), [false, false, true]);
}

#[test]
fn a_seed_that_stays_where_the_host_can_read_it_is_none() {
    let described = described(dtb!("virt-numa-modules")).unwrap();
    let seed = described.chosen.rng_seed;
    assert!(seed.is_some() && described.chosen.initrd == Some(range(0x4800_0000, 0x4810_0000)));
    // Where the blob is, whether it can be erased, whether somebody tries to, and whether the seed is the core's then.
    let good = range(0x4400_0000, 0x4410_0000);
    for (blob, erases, tried, kept) in [
        (good, true, true, true),
        (good, false, true, false),
        (range(0x0010_0000, 0x0020_0000), true, false, false),
        (range(0x3ff8_0000, 0x4008_0000), true, false, false),
        (range(0x480f_ffff, 0x4820_0000), true, false, false),
    ] {
        let (mut machine, mut asked) = (described.clone(), false);
        let answer = machine.keep_seed(blob, || {
            asked = true;
            erases
        });
        assert_eq!((answer, asked, machine.chosen.rng_seed), (kept, tried, seed.filter(|_| kept)), "{blob}");
    }
    // Without a seed nothing has to be erased.
    let mut machine = described;
    machine.chosen.rng_seed = None;
    assert!(machine.keep_seed(good, || panic!("there is nothing to erase")));
}

#[test]
fn the_maintenance_interrupt_and_release_addresses_are_gone() {
    with_tree(&edited(dtb!("raspi4b-qemu"), &NO_EDITS).unwrap(), |tree, _| {
        let gic = "/soc/interrupt-controller@40041000";
        assert_eq!((property(tree, gic, "interrupts"), property(tree, gic, "reg").map(<[u8]>::len)), (None, Some(16)));
        assert!(property(tree, gic, "phandle").is_some());
        assert_eq!(property(tree, "/cpus/cpu@0", "cpu-release-addr"), None);
        assert_eq!(property(tree, "/cpus/cpu@3", "enable-method"), Some(&b"psci\0"[..]));
    })
    .unwrap();
}

#[test]
fn what_linux_drives_by_registers_of_its_cpus_that_the_core_keeps_is_gone() {
    let build = Build::root().memory("memory", &[0, 0x8000_0000, 0x1000]).begin("cpus");
    let build = build.text("compatible", "nvidia,tegra194-ccplex").rest_in_cpus();
    let build = build.node("dsu-pmu", "arm,dsu-pmu", &[]).node("clock-controller", "qcom,msm8996-apcc", &[]);
    let build = build.node("pmu", "arm,cortex-a55-pmu", &[]);
    with_tree(&edited(&build.blob(), &NO_EDITS).unwrap(), |tree, machine| {
        let there = ["/dsu-pmu", "/clock-controller", "/pmu"].map(|path| tree.fdt().find_node(path).is_some());
        assert_eq!((there, machine.cpus.len()), ([false, false, true], 1));
        assert_eq!(property(tree, "/cpus", "compatible"), None);
        assert!(property(tree, "/cpus", "#size-cells").is_some());
    })
    .unwrap();
}

#[test]
fn a_bank_is_split_and_trimmed_in_its_own_cells_and_a_bank_of_the_core_goes() {
    let blob = Build::machine(&[&[0, 0x8000_0000, 0x1_0000, 0, 0x9000_0000, 0x1000], &[0, 0xa000_0000, 0x2000]]);
    let core = [range(0x8000_f000, 0x8001_1000), range(0x8000_2001, 0x8000_2002), range(0xa000_0000, 0xa000_2000)];
    with_tree(&edited(&blob, &HostEdits { core_memory: &core, ..NO_EDITS }).unwrap(), |tree, _| {
        let cells = [0, 0x8000_0000, 0x2000, 0, 0x8000_3000, 0xc000, 0, 0x9000_0000, 0x1000];
        let reg = cells.map(u32::to_be_bytes).concat();
        assert_eq!(property(tree, "/memory@0", "reg"), Some(&reg[..]));
        assert!(tree.fdt().find_node("/memory@1").is_none());
    })
    .unwrap();
}

#[test]
fn timer_interrupts_go_by_name_where_there_are_names() {
    let timer = |names: Option<&str>| {
        let cells: Vec<u32> = (0..15).collect();
        let build = Build::root().memory("memory", &[0, 0x8000_0000, 0x1000]).rest().begin("timer");
        let build = build.text("compatible", "arm,armv8-timer").cells("interrupts", &cells);
        let build = names.into_iter().fold(build, |build, names| build.text("interrupt-names", names));
        let host = edited(&build.end().blob(), &NO_EDITS).unwrap();
        with_tree(&host, |tree, machine| {
            let names =
                property(tree, "/timer", "interrupt-names").map(|names| String::from_utf8_lossy(names).into_owned());
            (machine.timer.unwrap().cells.to_vec(), names)
        })
        .unwrap()
    };
    assert_eq!(timer(None), (vec![0, 1, 2, 3, 4, 5], None));
    let named = timer(Some("virt\0phys\0sec-phys\0hyp-phys\0hyp-virt"));
    assert_eq!(named, (vec![3, 4, 5, 6, 7, 8], Some("phys\0sec-phys\0".into())));
    assert_eq!(timer(Some("phys\0virt")).0, [0, 1, 2]);
}

#[test]
fn a_psci_node_is_replaced_where_it_stands_or_created() {
    let psci = Build::root().memory("memory", &[0, 0x8000_0000, 0x1000]).rest().begin("firmware").begin("old");
    let psci = psci.text("compatible", "arm,psci").text("method", "hvc").cells("cpu_on", &[5]).cells("phandle", &[7]);
    with_tree(&edited(&psci.end().end().blob(), &NO_EDITS).unwrap(), |tree, _| {
        assert_eq!(property(tree, "/firmware/old", "compatible"), Some(&b"arm,psci-1.0\0arm,psci-0.2\0"[..]));
        assert_eq!(property(tree, "/firmware/old", "method"), Some(&b"smc\0"[..]));
        assert_eq!(property(tree, "/firmware/old", "cpu_on"), None);
        assert!(property(tree, "/firmware/old", "phandle").is_some() && tree.fdt().find_node("/psci").is_none());
    })
    .unwrap();
    with_tree(&edited(dtb!("raspi4b-qemu"), &NO_EDITS).unwrap(), |tree, _| {
        assert_eq!(property(tree, "/psci", "method"), Some(&b"smc\0"[..]));
    })
    .unwrap();
}

#[test]
fn a_buffer_that_is_too_small_is_an_error_at_every_size() {
    let edits = HostEdits { bootargs: Some("a"), initrd: Some(range(1, 2)), ..NO_EDITS };
    let blob = Build::machine(&[&[0, 0x8000_0000, 0x1000]]);
    let full = edited(&blob, &edits).unwrap().len();
    for len in 0..full {
        let result = with_tree(&blob, |tree, machine| {
            host_device_tree(tree, machine, &edits, &mut vec![0; len]).map(<[u8]>::len)
        });
        assert_eq!(result.unwrap().unwrap_err().reason, Reason::BufferTooSmall, "{len}");
    }
    for len in 0..buffer_size(&blob).unwrap() - blob.len() / 12 {
        let result = DeviceTree::normalise(&blob, &mut vec![0; len]).map(|_| ());
        assert_eq!(result.unwrap_err().reason, Reason::BufferTooSmall, "{len}");
    }
}

#[test]
fn a_text_with_a_nul_is_refused() {
    let blob = Build::machine(&[&[0, 0x8000_0000, 0x1000]]);
    assert!(edited(&blob, &HostEdits { bootargs: Some("a\0b"), ..NO_EDITS }).is_err());
}

/// Runs where the device tree compiler is installed; elsewhere it has nothing to say.
#[test]
fn dtc_accepts_the_hosts_trees() {
    for (name, blob) in machines() {
        let path = std::env::temp_dir().join(std::format!("corevisor-{}-{name}.dtb", std::process::id()));
        std::fs::write(&path, edited(blob, &NO_EDITS).unwrap()).unwrap();
        let dtc = Command::new("dtc").args(["-I", "dtb", "-O", "dts", "-o", "/dev/null"]).arg(&path).output();
        std::fs::remove_file(&path).unwrap();
        let Ok(output) = dtc else { return };
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
