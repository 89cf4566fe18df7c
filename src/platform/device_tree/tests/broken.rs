//! Broken trees: each has its own named error, and says where.
#![forbid(unsafe_code)]

use std::string::ToString;

use super::build::Build;
use super::*;

const BANK: &[u32] = &[0, 0x8000_0000, 0x1000];

fn reason(blob: &[u8]) -> Reason {
    described(blob).expect_err("the tree was accepted").reason
}

/// A correct machine with something more in its root.
fn machine_with(more: impl Fn(Build) -> Build) -> Vec<u8> {
    more(Build::root().memory("memory", BANK).rest()).blob()
}

/// A correct blob with one header field changed.
fn with_header(field: usize, value: u32) -> Vec<u8> {
    let mut blob = Build::machine(&[BANK]);
    blob[field * 4..field * 4 + 4].copy_from_slice(&value.to_be_bytes());
    blob
}

#[test]
fn a_wrong_header_field_is_named() {
    assert_eq!(reason(&with_header(0, 0xdead_beef)), Reason::BadMagic);
    assert_eq!(reason(&with_header(1, u32::MAX)), Reason::TooLarge);
    assert_eq!(reason(&with_header(1, 1 << 20)), Reason::Truncated);
    assert_eq!(reason(&with_header(2, 3)), Reason::BadHeader("off_dt_struct"));
    assert_eq!(reason(&with_header(3, u32::MAX)), Reason::BadHeader("off_dt_strings"));
    assert_eq!(reason(&with_header(4, 44)), Reason::BadHeader("off_mem_rsvmap"));
    assert_eq!(reason(&with_header(5, 3)), Reason::UnsupportedVersion(3));
    assert_eq!(reason(&with_header(6, 18)), Reason::UnsupportedVersion(18));
    assert_eq!(reason(&with_header(8, u32::MAX)), Reason::BadHeader("off_dt_strings"));
    assert_eq!(reason(&with_header(9, u32::MAX)), Reason::BadHeader("off_dt_struct"));
}

#[test]
fn a_tree_cut_off_anywhere_is_an_error() {
    let blob = Build::machine(&[BANK]);
    for len in 0..blob.len() {
        assert_eq!(reason(&blob[..len]), Reason::Truncated, "{len}");
    }
    for size in (0..blob.len() as u32 - 200).step_by(4) {
        let reason = reason(&with_header(9, size));
        let early = [Reason::StructureEndsEarly, Reason::PropertyTooLong, Reason::BadNodeName];
        assert!(early.contains(&reason) || matches!(reason, Reason::BadHeader(_)), "{size}: {reason}");
    }
}

#[test]
fn a_malformed_structure_is_named() {
    assert_eq!(reason(&machine_with(|b| b.word(7))), Reason::BadToken(7));
    assert_eq!(reason(&machine_with(|b| b.end())), Reason::BadToken(2));
    assert_eq!(reason(&machine_with(|b| b.end().begin(""))), Reason::BadToken(1));
    assert_eq!(reason(&machine_with(|b| b.end().cells("x", &[]))), Reason::BadToken(3));
    assert_eq!(reason(&machine_with(|b| b.begin("x"))), Reason::StructureEndsEarly);
    assert_eq!(reason(&machine_with(|b| b.cells("x", &[]))), Reason::PropertyAfterNode);
    assert_eq!(reason(&machine_with(|b| b.begin("x").word(3).word(1 << 30).word(0).end())), Reason::PropertyTooLong);
    assert_eq!(reason(&machine_with(|b| b.begin("x").word(3).word(0).word(9999).end())), Reason::BadPropertyName);
    assert_eq!(reason(&machine_with(|b| b.begin("x").cells("/x", &[]).end())), Reason::BadPropertyName);
    for name in ["", "a/b", "a b", "\u{e9}"] {
        assert_eq!(reason(&machine_with(|b| b.begin(name).end())), Reason::BadNodeName, "{name}");
    }
    assert_eq!(reason(&Build::default().begin("root").blob()), Reason::BadNodeName);
    assert_eq!(reason(&Build::default().word(9).unfinished()), Reason::StructureEndsEarly);
    assert_eq!(reason(&Build::default().unfinished()), Reason::StructureEndsEarly);
}

#[test]
fn nesting_ends_at_the_limit() {
    let nested = |depth: usize| {
        let open = |b: Build| (0..depth).fold(b, |b, _| b.begin("n"));
        machine_with(|b| (0..depth).fold(open(b), |b, _| b.end()))
    };
    assert!(described(&nested(MAX_DEPTH - 1)).is_ok());
    assert_eq!(reason(&nested(MAX_DEPTH)), Reason::TooDeep);
}

#[test]
fn absurd_cell_counts_are_refused() {
    for cells in [&[5][..], &[u32::MAX], &[], &[1, 1]] {
        let blob = machine_with(|b| b.begin("bus").cells("#size-cells", cells).end());
        assert_eq!(reason(&blob), Reason::BadProperty("#size-cells"), "{cells:?}");
    }
    let blob =
        Build::default().begin("").cells("#address-cells", &[0]).cells("#size-cells", &[0]).memory("memory", BANK);
    assert_eq!(reason(&blob.rest().blob()), Reason::BadProperty("reg"));
}

#[test]
fn what_a_machine_must_have_is_missed_by_name() {
    assert_eq!(reason(&Build::root().rest().blob()), Reason::NoMemory);
    assert_eq!(reason(&Build::machine(&[&[0, 0, 0]])), Reason::NoMemory);
    assert_eq!(reason(dtb!("bcm2711-rpi-4-b")), Reason::NoMemory, "firmware or QEMU fills it in");
    assert_eq!(reason(&Build::root().memory("memory", BANK).blob()), Reason::NoCpus);
    let cpu = Build::root().memory("memory", BANK).begin("cpus").cells("#address-cells", &[1]);
    let cpu = cpu.node("cpu@0", "", &[("reg", &[0])]).end();
    assert_eq!(reason(&cpu.blob()), Reason::NoInterruptController);
    assert_eq!(described(&Build::machine(&[BANK])).unwrap().psci, None);
}

#[test]
fn memory_that_contradicts_itself_is_refused() {
    let overlap = Reason::OverlappingMemory(range(0x8000_0800, 0x8000_1000));
    assert_eq!(reason(&Build::machine(&[BANK, &[0, 0x8000_0800, 0x1000]])), overlap);
    assert_eq!(reason(&Build::machine(&[&[0, 0x8000_0800, 0x1000], BANK])), overlap);
    assert_eq!(reason(&Build::machine(&[BANK, BANK])), Reason::OverlappingMemory(range(0x8000_0000, 0x8000_1000)));
    assert_eq!(reason(&Build::machine(&[&[0x10_0000, 0, 0x1000]])), Reason::AddressTooLarge((1 << 52) + 0x1000));
    assert_eq!(reason(&Build::machine(&[&[u32::MAX, u32::MAX, 0x1000]])), Reason::AddressTooLarge(u64::MAX));
    assert_eq!(reason(&Build::machine(&[&[0, 0x8000_0000]])), Reason::BadProperty("reg"));
}

#[test]
fn properties_that_break_their_binding_are_named() {
    let chosen = |name: &'static str, value: &'static [u8]| machine_with(|b| b.begin("chosen").raw(name, value).end());
    assert_eq!(reason(&chosen("linux,initrd-start", &[1; 4])), Reason::BadProperty("linux,initrd-end"));
    assert_eq!(reason(&chosen("linux,initrd-start", &[1; 5])), Reason::BadProperty("linux,initrd-start"));
    assert_eq!(reason(&chosen("bootargs", b"\xff\0")), Reason::BadProperty("bootargs"));
    let psci = |method: &'static str| {
        machine_with(|b| b.begin("psci").text("compatible", "arm,psci").text("method", method).end())
    };
    assert_eq!(reason(&psci("call")), Reason::BadProperty("method"));
    assert_eq!(described(&psci("hvc")).unwrap().psci.map(|psci| psci.conduit), Some(PsciConduit::Hvc));
    let cpu = |reg: &'static [u32]| {
        machine_with(|b| b.begin("cpus").cells("#address-cells", &[1]).node("cpu@9", "", &[("reg", reg)]).end())
    };
    assert_eq!(reason(&cpu(&[0])), Reason::DuplicateCpu(0));
    assert_eq!(reason(&cpu(&[1 << 24])), Reason::BadProperty("reg"));
    assert_eq!(reason(&cpu(&[])), Reason::BadProperty("reg"));
}

#[test]
fn too_many_of_something_is_an_error_that_names_it() {
    let windows = machine_with(|b| (0..600).fold(b, |b, n| b.node("dev", "x", &[("reg", &[1, n << 16, 4])])));
    assert_eq!(reason(&windows), Reason::TooMany("device windows"));
    let banks: Vec<u32> = (0..65).flat_map(|n| [1, n << 16, 0x1000]).collect();
    assert_eq!(reason(&Build::machine(&[&banks])), Reason::TooMany("memory banks"));
}

#[test]
fn an_error_is_one_line_that_says_what_and_where() {
    let blob = machine_with(|b| b.begin("soc").begin("dev@1").cells("#size-cells", &[]).end().end());
    let error = described(&blob).unwrap_err();
    assert_eq!(error.to_string(), "device tree: bad value of property #size-cells at /soc/dev@1");
    assert_eq!(described(&with_header(0, 0)).unwrap_err().to_string(), "device tree: not a device tree (magic number)");
    let overlap = described(&Build::machine(&[BANK, BANK])).unwrap_err().to_string();
    assert_eq!(overlap, "device tree: memory banks overlap at [0x80000000, 0x80001000) at /memory@1");
}
