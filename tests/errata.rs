//! What only real hardware would show: the order of barriers and of writes to registers, on which QEMU and the simulated machine do not depend. It is read from the sources.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Rust and assembly of the core, by name, without comments.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "S") {
                out.push(path);
            }
        }
    }
    let mut paths = vec![];
    ["src", "boot"].iter().for_each(|dir| walk(&root().join(dir), &mut paths));
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), without_comments(&fs::read_to_string(path).unwrap()))).collect()
}

fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// The functions of a file: from one `fn` to the next.
fn functions(text: &str) -> Vec<&str> {
    let mut starts: Vec<_> = text.match_indices("fn ").map(|(at, _)| at).collect();
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// The function that begins like this, to its end at the line's start.
fn function(file: &str, start: &str) -> String {
    let text = without_comments(&read(file));
    let at = text.find(start).unwrap_or_else(|| panic!("{file} has no {start}"));
    text[at..].split("\n}").next().unwrap().to_owned()
}

/// Whether these stand in `text`, in this order.
#[track_caller]
fn assert_order(text: &str, wanted: &[&str]) {
    let mut rest = text;
    for part in wanted {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part:?} is not where it should be ({wanted:?}):\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

const MAINTENANCE: &str = "src/abstract_machine/cpu/maintenance.rs";

/// Whether it has TLB maintenance for all CPUs.
fn broadcasts(text: &str) -> bool {
    text.split("tlbi ").skip(1).any(|rest| {
        let name = rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        name.ends_with("is") || name.ends_with("os")
    })
}

#[test]
fn cve_2025_10263_what_tells_all_cpus_to_forget_waits_behind_a_second_tlbi() {
    let mut told = 0;
    for (file, text) in sources() {
        if file != MAINTENANCE {
            assert!(!broadcasts(&text), "{file}: TLB maintenance for all CPUs stands in {MAINTENANCE}");
            continue;
        }
        for function in functions(&text).into_iter().filter(|function| broadcasts(function)) {
            let name = function.split('(').next().unwrap();
            if name == "fn wait_for_all" {
                assert_order(function, &["\"dsb ish\", \"tlbi vale2is, xzr\", \"dsb ish\", \"isb\""]);
                continue;
            }
            let last = function.rfind("tlbi").unwrap();
            assert!(function[last..].contains("wait_for_all();"), "{name} does not wait:\n{function}");
            told += 1;
        }
    }
    assert_eq!(told, 5, "functions that tell all CPUs");
}

#[test]
fn walks_that_el1_began_are_over_before_its_tables_change() {
    const TRAPS: &str = "src/abstract_machine/cpu/traps.rs";
    let change = function(TRAPS, "pub fn change_stage2(");
    let block: Vec<_> = change.split('"').skip(1).step_by(2).collect();
    // Arm ARM R_LFHQG: a DSB. 1319537 and its like: TCR_EL1 before SCTLR_EL1, both before stage 2.
    let wanted = [
        "dsb nsh",
        "msr tcr_el1",
        "isb",
        "msr sctlr_el1",
        "isb",
        "msr vtcr_el2",
        "msr vttbr_el2",
        "msr hcr_el2",
        "isb",
    ];
    assert_order(&change, &wanted);
    assert_eq!((block.first(), block.last()), (Some(&"dsb nsh"), Some(&"isb")), "{change}");
    // AC04_CPU_23: nothing is loaded or stored around the write of HCR_EL2.
    assert!(block.iter().all(|line| !line.starts_with("ld") && !line.starts_with("st")), "{change}");
    assert_order(&function(TRAPS, "pub fn write_hcr("), &["\"dsb nsh\", \"msr hcr_el2, {}\", \"isb\""]);

    for (file, text) in sources() {
        let written = text.matches("HCR_EL2.set(").count() + text.matches("HCR_EL2.write(").count();
        let others = text.matches("MPAMHCR_EL2.").count() + text.matches("ICH_HCR_EL2.").count();
        assert_eq!(written, others, "{file} writes HCR_EL2 by itself");
        let tables = text.matches("VTTBR_EL2.set(").count() + text.matches("msr vttbr_el2").count();
        // The start of a CPU; the change; and the way back after a flush, when nothing of EL1 ran since the change.
        let may = match file.as_str() {
            "src/abstract_machine/cpu/el2.rs" | TRAPS | MAINTENANCE => 1,
            _ => 0,
        };
        assert_eq!(tables, may, "{file} changes VTTBR_EL2");
    }
    assert_order(
        &function(MAINTENANCE, "fn with_vttbr("),
        &["VTCR_EL2.get()", "change_stage2(", "VTCR_EL2.set(vtcr)", "VTTBR_EL2.set(current)"],
    );
}

#[test]
fn an_serror_that_a_vm_caused_is_looked_for_before_anything_of_the_core_takes_it() {
    let switch = without_comments(&read("boot/switch.S"));
    let leave = &switch[switch.find("vm_leave:").unwrap()..];
    let leave = &leave[..leave.find("    ret").unwrap()];
    let masked = ["dsb     sy", "isb", "isr_el1", "vm_serror", "msr     vbar_el2", "ldp     x29, x30, [sp], #128"];
    assert_order(leave, &[&masked[..], &["msr     daifclr"]].concat());
    assert_eq!(leave.matches("daifclr").count(), 1, "{leave}");
    // One that the host left waiting: the VM does not run, and it stays masked.
    let run = &switch[switch.find("run_vm:\n").unwrap()..];
    assert_order(run, &["isr_el1", "tbnz", "not_run", "stp     x29, x30"]);
    assert!(switch.contains("not_run:\n    ret\n"));
    // One instruction, whose address `core_trap` knows.
    let take = &switch[switch.find("take_serror:").unwrap()..];
    assert_order(take, &["msr     daifclr", "serror_at:\n    isb\nserror_behind:\n    msr     daifset"]);
}

#[test]
fn extensions_of_el2_that_a_loader_may_have_used_are_off_where_the_cpu_has_them() {
    let entry = without_comments(&read("boot/entry.S"));
    let plain = &entry[entry.find(".macro  plain_el2").unwrap()..];
    let plain = &plain[..plain.find(".endm").unwrap()];
    // ID_AA64MMFR3_EL1.TCRX, SCTLRX and ID_AA64PFR1_EL1.GCS; TCR2_EL2, SCTLR2_EL2, GCSCR_EL2.
    let wanted = [
        ["S3_0_C0_C7_3", "#0xf ", "S3_4_C2_C0_3, xzr"],
        ["", "#0xf0", "S3_4_C1_C0_3, xzr"],
        ["id_aa64pfr1_el1", "0xf << 44", "S3_4_C2_C5_0, xzr"],
    ];
    assert_order(plain, wanted.as_flattened());
    assert_order(plain, &["dsb     nsh", "msr     hcr_el2", "isb"]);
    assert!(entry.find("3:  plain_el2").unwrap() < entry.find("\n    mmu_on\n").unwrap());
}

#[test]
fn a_vm_walks_no_tables_in_its_window_and_switches_off_no_registers_of_the_gic() {
    let vm = read("src/abstract_machine/cpu/traps.rs");
    let vm = vm[vm.find("fn vm_hcr").unwrap()..].split(';').next().unwrap();
    assert!(vm.contains("HCR_EL2::PTW::SET"), "{vm}");
    let file = "src/abstract_machine/cpu/vgic.rs";
    assert_order(&function(file, "pub fn restore("), &["IchHcr::set(hcr)", "set_gic_access(false)"]);
    assert_order(&function(file, "pub fn save("), &["off(", "version == 3", "set_gic_access(true)"]);
}
