//! Every board that Debian's kernel knows: what the core makes of its device tree.
//!
//! The trees are those of the kernel package, more than a thousand (`scripts/setup dtbs`). What the board's boot loader adds to its tree is added here: memory where the tree has
//! none, at the first usual place at which no device is. Then each tree goes the way of boot, and what comes out is compared with what another reader of device
//! trees (crate `dtoolkit`, and the translation of addresses in [`oracle`]) finds in it.
//!
//! It shows that the core understands the tree, gives the host all of it that is not the core's, and finds a console; not that the board runs.
//!
//! Without the trees there is nothing to test, so by `cargo test` alone these are ignored; `scripts/test unit` runs them.
#![forbid(unsafe_code)]

mod oracle;
mod tree;

use corevisor::abstract_machine::addr::{Pa, PhysRange};
use corevisor::memory::mem_region::MemRegions;
use corevisor::platform::device_tree::{
    DeviceTree, DeviceTreeError, Gic, HostEdits, MAX_BLOB, MachineDescription, buffer_size, describe, host_device_tree,
    host_tree_size, withhold,
};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use tree::{Board, boards};

/// A board whose tree is refused, rightly.
const REFUSED: &[(&str, &str)] = &[
    // Cortex-A53 with an interrupt controller of Broadcom's own, which cannot interrupt a VM.
    ("broadcom/bcm2837-", "no interrupt controller that the core knows"),
    // Telephones whose boot loader (lk2nd) fills in where its spin tables are.
    ("qcom/apq8039-", "bad value of property cpu-release-addr"),
    ("qcom/msm8929-", "bad value of property cpu-release-addr"),
    ("qcom/msm8939-", "bad value of property cpu-release-addr"),
    ("qcom/msm8992-lg-h815", "bad value of property cpu-release-addr"),
    // Its two upper banks share bytes.
    ("exynos/exynosautov920-sadk", "memory banks overlap"),
];

const LOADED: u64 = 2 << 20;

/// What the core has found out, and the host's tree.
struct Seen {
    machine: Box<MachineDescription>,
    host: Vec<u8>,
}

/// The way of boot.
fn go_through(blob: &[u8]) -> Result<Seen, DeviceTreeError> {
    let needed = buffer_size(blob)?;
    assert!(needed <= MAX_BLOB, "{needed} bytes");
    let mut buffer = vec![0xa5; needed];
    let tree = DeviceTree::normalise(blob, &mut buffer)?;
    let mut machine = Box::new(MachineDescription::empty());
    describe(&tree, &mut machine)?;
    // The core and the blob lie in the last bank.
    let end = machine.ram.last().expect("describe found RAM").end().raw() / LOADED * LOADED;
    let core = PhysRange::between(Pa::new(end - LOADED), Pa::new(end));
    withhold(&tree, &mut machine, &[core])?;
    let core_memory: Vec<PhysRange> = machine.withheld.iter().copied().chain([core]).collect();
    let core_memory = &core_memory;
    let edits = HostEdits {
        core_memory,
        initrd: None,
        bootargs: None,
        smmus_taken: false,
        gic_taken: false,
        seed: None,
        version: "0",
    };
    let mut out = vec![0; host_tree_size(&tree, &edits)];
    let host = host_device_tree(&tree, &machine, &edits, &mut out)?.to_vec();
    Ok(Seen { machine, host })
}

type Outcome = (Board, Result<Seen, DeviceTreeError>);

/// Each board's tree after the way of boot.
static BOARDS: LazyLock<Vec<Outcome>> = LazyLock::new(|| {
    boards()
        .map(|board| {
            let outcome = go_through(&board.blob);
            (board, outcome)
        })
        .collect()
});

/// `check` on every board that is not refused; all that it finds wrong is told at once.
fn on_every_board(check: impl Fn(&Board, &Seen) -> Result<(), String>) {
    let seen: Vec<_> = BOARDS.iter().filter_map(|(board, outcome)| Some((board, outcome.as_ref().ok()?))).collect();
    assert!(seen.len() > 900, "only {} boards", seen.len());
    let wrong = seen.iter().filter_map(|(board, seen)| Some(format!("{}: {}", board.name, check(board, seen).err()?)));
    tell(&wrong.collect::<Vec<_>>());
}

/// Fails with what is wrong, all of it.
fn tell(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} boards:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[ignore = "needs the device trees of Debian's kernel: scripts/test unit"]
fn every_tree_is_understood_or_refused_for_a_reason_that_is_known() {
    let mut wrong = Vec::new();
    for (board, outcome) in BOARDS.iter() {
        let refused = REFUSED.iter().find(|refused| board.name.starts_with(refused.0));
        match (outcome, refused) {
            (Ok(_), None) => {}
            (Err(error), Some((_, why))) if error.to_string().contains(why) => {}
            (Ok(_), Some(_)) => wrong.push(format!("{}: is not refused any more", board.name)),
            (Err(error), _) => wrong.push(format!("{}: {error}", board.name)),
        }
    }
    tell(&wrong);
}

#[test]
#[ignore = "needs the device trees of Debian's kernel: scripts/test unit"]
fn every_register_of_an_enabled_device_is_in_the_hosts_reach() {
    on_every_board(|board, seen| {
        let machine = &seen.machine;
        let not_the_hosts: Vec<PhysRange> = machine.gic.iter().flat_map(Gic::virtualization_frames).collect();
        let reached = |page: PhysRange| {
            machine.windows.iter().chain(machine.ram.iter()).any(|range| range.contains_range(page))
                || machine.withheld.iter().any(|range| range.overlaps(page))
                || not_the_hosts.iter().any(|range| range.overlaps(page))
        };
        let registers = oracle::registers(&board.blob);
        for (path, range) in &registers {
            if let Some(page) = pages(*range).find(|page| !reached(*page)) {
                return Err(format!("{path}: {page} is out of reach"));
            }
        }
        Ok(())
    });
}

/// First and last page of a range, which is enough where windows are runs.
fn pages(range: PhysRange) -> impl Iterator<Item = PhysRange> {
    let cover = range.page_cover();
    let page = |at: u64| PhysRange::between(Pa::new(at), Pa::new(at + 4096));
    let ends = [cover.base().raw(), cover.end().raw().saturating_sub(4096)];
    ends.into_iter().filter(move |_| !cover.is_empty()).map(page)
}

#[test]
#[ignore = "needs the device trees of Debian's kernel: scripts/test unit"]
fn nothing_is_opened_that_no_node_asks_for_and_no_window_covers_ram() {
    on_every_board(|board, seen| {
        let machine = &seen.machine;
        if let Some(window) = machine.windows.iter().find(|one| machine.ram.iter().any(|bank| bank.overlaps(**one))) {
            return Err(format!("window {window} covers RAM"));
        }
        // Each page of a window is there for some register, a bus window of PCI, or memory that a driver has for itself.
        let reasons = oracle::all_ranges(&board.blob);
        for window in machine.windows.iter() {
            for page in pages(*window) {
                if !reasons.iter().any(|range| range.page_cover().overlaps(page)) {
                    return Err(format!("nothing in the tree asks for {page}"));
                }
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs the device trees of Debian's kernel: scripts/test unit"]
fn the_hosts_tree_has_every_node_but_those_that_are_the_cores() {
    on_every_board(|board, seen| {
        let (before, after) = (oracle::nodes(&board.blob), oracle::nodes(&seen.host));
        let is_debug = |compatible: &str| compatible.contains("coresight");
        // Linux drives these by registers of an implementation's own, which are undefined for the host.
        let is_undefined = |text: &str| matches!(text, "arm,dsu-pmu" | "qcom,msm8996-apcc");
        let goes = |compatible: &str| is_debug(compatible) || compatible.split(' ').any(is_undefined);
        for (path, compatible) in &before {
            let gone = before.iter().any(|(above, compatible)| {
                goes(compatible) && (path == above || path.starts_with(&format!("{above}/")))
            });
            let is_memory = path.starts_with("/memory") || path.starts_with("/ram@");
            if !gone && !is_memory && !after.contains_key(path) {
                return Err(format!("{path} ({compatible}) is gone"));
            }
        }
        if let Some((path, compatible)) = after.iter().find(|(_, compatible)| goes(compatible)) {
            return Err(format!("{path} ({compatible}) is there"));
        }
        let added: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
        let known = |path: &&String| matches!(path.as_str(), "/psci" | "/hypervisor" | "/chosen");
        match added.iter().find(|path| !known(path)) {
            Some(path) => Err(format!("{path} is new")),
            None => Ok(()),
        }
    });
}

#[test]
#[ignore = "needs the device trees of Debian's kernel: scripts/test unit"]
fn the_hosts_tree_has_the_memory_that_the_core_leaves_and_nothing_else() {
    on_every_board(|_, seen| {
        let mut buffer = vec![0; buffer_size(&seen.host).map_err(|error| error.to_string())?];
        let tree = DeviceTree::normalise(&seen.host, &mut buffer).map_err(|error| error.to_string())?;
        let mut after = Box::new(MachineDescription::empty());
        describe(&tree, &mut after).map_err(|error| error.to_string())?;
        let size = |ram: &[PhysRange]| ram.iter().map(|bank| bank.size()).sum::<u64>();
        let (left, all) = (size(&after.ram), size(&seen.machine.ram));
        // A driver's own memory stands in the host's banks, for Linux to leave out; the core has it as a window.
        let is_hosts = |at: u64| {
            let page = PhysRange::between(Pa::new(at), Pa::new(at + 4096));
            seen.machine.ram.iter().chain(seen.machine.windows.iter()).any(|range| range.contains_range(page))
        };
        let pages = after.ram.iter().flat_map(|bank| (bank.base().raw()..bank.end().raw()).step_by(4096));
        match pages.into_iter().find(|page| !is_hosts(*page)) {
            Some(page) => Err(format!("{page:#x} is not the host's")),
            None if left + LOADED < all => Err(format!("{left:#x} of {all:#x} bytes are left")),
            None => Ok(()),
        }
    });
}

#[test]
#[ignore = "needs the device trees of Debian's kernel: scripts/test unit"]
fn every_board_has_room_in_the_tables_of_fixed_size() {
    on_every_board(|_, seen| {
        let mut regions = MemRegions::new();
        let mut all: Vec<(PhysRange, bool)> = seen.machine.ram.iter().map(|range| (*range, true)).collect();
        all.extend(seen.machine.windows.iter().map(|range| (*range, false)));
        all.sort_by_key(|(range, _)| range.base());
        all.into_iter().try_for_each(|(range, is_ram)| {
            let pushed = if is_ram { regions.push_ram(range) } else { regions.push_device(range) };
            pushed.map_err(|error| format!("{range}: {error:?}"))
        })
    });
}

/// Kinds of UART that the core does not drive, by the start of `compatible`; its lines are then seen by nobody.
const SILENT: &[&str] = &[
    "qcom,geni-debug-uart",
    "qcom,geni-uart",
    "qcom,msm-uartdm",
    "renesas,scif-",
    "renesas,r9a09g011-uart",
    "samsung,exynos",
    "google,gs101-uart",
];

#[test]
#[ignore = "needs the device trees of Debian's kernel: scripts/test unit"]
fn the_console_is_found_wherever_the_tree_names_one_that_the_core_can_drive() {
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut wrong = Vec::new();
    for (board, outcome) in BOARDS.iter() {
        let Ok(seen) = outcome else { continue };
        let stdout = oracle::stdout(&board.blob);
        let is_silent = |of: &str| SILENT.iter().any(|silent| of.starts_with(silent));
        let kind = match (&seen.machine.console, &stdout) {
            (Some(console), Some((_, range))) if console.base() == range.base() => "driven",
            (None, Some((compatible, _))) if is_silent(compatible) => "of a kind that is not driven",
            (None, None) => "not named by the tree",
            (console, _) => {
                wrong.push(format!("{}: {console:?} but {stdout:?}", board.name));
                "wrong"
            }
        };
        *counts.entry(kind).or_default() += 1;
    }
    println!("consoles: {counts:?}");
    tell(&wrong);
}
