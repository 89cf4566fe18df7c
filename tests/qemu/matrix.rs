//! A stock Debian host on all kinds of QEMU's virt: kernels, interrupt controllers, CPUs, memory.
//!
//! The default selection has every value of the matrix with every other. CPUs beside the matrix are in it with other stories
//! ([`host_life`](crate::host_life)), 64 GiB with a smaller host ([`vms`](crate::vms)); `--full` runs everything here.

use crate::{
    bed::{Bed, Checks, Failure, check, healthy},
    host_tree,
    runner::Case,
};
use corevisor_tool::machine::Machine;

const KERNELS: [&str; 2] = ["6.1", "6.12"];
const GICS: [u32; 2] = [2, 3];
const CPUS: [&str; 2] = ["cortex-a72", "max"];
const NUMBERS: [u32; 3] = [1, 2, 4];
const MEMORIES: [&str; 2] = ["512M", "4G"];

/// A place in the matrix: the index of each value.
type Place = [usize; 5];

/// The default selection: every value meets every other.
const SELECTED: [Place; 6] =
    [[0, 0, 0, 0, 0], [1, 1, 1, 0, 1], [0, 0, 1, 1, 1], [1, 1, 0, 1, 0], [0, 1, 0, 2, 1], [1, 0, 1, 2, 0]];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![Case::new("matrix", "the default selection has every value with every other", |_| pairs())];
    for place in all().into_iter() {
        let [kernel, gic, cpu, number, memory] = place;
        let (kernel, gic, cpu, number) = (KERNELS[kernel], GICS[gic], CPUS[cpu], NUMBERS[number]);
        let memory = MEMORIES[memory];
        cases.push(virt(kernel, gic, cpu, number, memory).only_in_full_if(!SELECTED.contains(&place)));
    }
    for (cpu, gic) in [("cortex-a53", 2), ("cortex-a76", 3), ("neoverse-v1", 3)] {
        cases.push(virt("6.12", gic, cpu, 2, "2G").only_in_full_if(true));
    }
    cases.push(virt("6.12", 3, "max", 4, "64G").only_in_full_if(true));
    cases.push(virt("6.12", 4, "max", 2, "2G").only_in_full_if(true));
    cases.push(
        Case::new("matrix", "Debian's 6.12 lives on GICv3, 64 x cortex-a72, 4G", many_cpus).only_in_full_if(true),
    );
    cases
}

fn virt(kernel: &'static str, gic: u32, cpu: &'static str, number: u32, memory: &'static str) -> Case {
    let name = format!("Debian's {kernel} lives on GICv{gic}, {number} x {cpu}, {memory}");
    Case::new("matrix", name, move |bed| {
        let machine = Machine::virt().gic(gic).cpu(cpu).smp(number);
        let machine = if memory == "64G" { much_memory(machine) } else { machine.memory(memory) };
        let more = if gic == 4 { [SEEDED, VERSION_4].join("\n") } else { SEEDED.to_owned() };
        lives(bed, machine, kernel, number, &more).map(|_| ())
    })
}

/// As many CPUs as the core drives, all of which come up. They take turns: 64 threads would wait for each other here.
fn many_cpus(bed: &Bed) -> Result<(), Failure> {
    let machine = Machine::virt().gic(3).cpu("cortex-a72").smp(64).memory("4G");
    healthy(bed.run(machine), 64, "").map(|_| ())
}

/// The loader's seed is the core's, which gives the host another one. Linux takes it out of its tree as soon as it has it.
const SEEDED: &str = r#"dmesg | grep -q '\[ *0\.000000\] random: crng init done' || fail "the host had no random numbers from the start""#;

/// What the kernel of such a host finds there, though it runs no VM of its own.
const VERSION_4: &str = r#"dmesg | grep -q 'GICv4 features' || fail "the host's kernel finds no GICv4""#;

/// Gives it 64 GiB, more than this machine may have: pages that are not touched cost nothing.
pub fn much_memory(machine: Machine) -> Machine {
    let backend = "memory-backend-ram,id=ram,size=64G,reserve=off";
    machine.memory("64G").machine_option("memory-backend=ram").arg("-object").arg(backend)
}

/// What stands on the first MiB of a host's disk.
pub fn pattern() -> Vec<u8> {
    (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

/// Boots a host with disk and network, which examines itself and does `more`, and looks at its disk: what the host copied, and its
/// device tree, which it gives.
pub fn lives(bed: &Bed, machine: Machine, kernel: &str, cpus: u32, more: &str) -> Result<Vec<u8>, Failure> {
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk.img");
    let pattern = pattern();
    let empty = vec![0; 2 * pattern.len()];
    std::fs::write(&disk, [&pattern[..], &empty].concat())?;
    let run = bed.stock(machine.drive(&disk).net(true)).kernel(kernel);
    let tree = "dd if=/sys/firmware/fdt of=/dev/vda bs=64k seek=32 conv=fsync 2>/dev/null";
    let done = healthy(run, cpus, &format!("{tree}\n{more}"))?;
    let written = std::fs::read(&disk)?;
    let (copied, tree) = written.split_at(2 * pattern.len());
    done.check(copied == [&pattern[..], &pattern].concat(), "the disk's file does not hold what the host wrote")?;
    host_tree::examine(tree)?;
    Ok(tree.to_vec())
}

fn all() -> Vec<Place> {
    let mut places = vec![[0; 5]];
    for (at, values) in [KERNELS.len(), GICS.len(), CPUS.len(), NUMBERS.len(), MEMORIES.len()].into_iter().enumerate() {
        let with = |place: Place, value| {
            let mut place = place;
            place[at] = value;
            place
        };
        places = places.into_iter().flat_map(|place| (0..values).map(move |value| with(place, value))).collect();
    }
    places
}

fn pairs() -> Result<(), Failure> {
    for place in all() {
        for (one, other) in (0..5).flat_map(|one| (0..one).map(move |other| (one, other))) {
            let meets = |chosen: &Place| chosen[one] == place[one] && chosen[other] == place[other];
            check(SELECTED.iter().any(meets), format!("values {one} and {other} of {place:?} do not meet"))?;
        }
    }
    Ok(())
}
