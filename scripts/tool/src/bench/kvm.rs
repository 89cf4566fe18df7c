//! What VMs of a Linux host cost: under the kernel's own KVM (the host at EL2, nVHE) and under the core with the driver, in the same QEMU.
//!
//! The payload is the mini host's, tests/guests/src/bin/bench.rs; its VMM is tests/host-programs/kvm-probe. Then Debian's QEMU boots Debian.

use super::{
    BOOTED, Bench, BenchError, DONE, PARTS as WORKS, counting,
    profile::{Count, Profile},
    profile_of,
    steady::{self, Steady},
    table::{Budget, Row, Table},
    vms::{GICV2_CPU, MEMORY, NOT_MORE_THAN, PATHS, Path, cost, least},
};
use crate::{
    error::{create_dir, read},
    kvm::{Driver, GuestGic, KvmHost, USE},
    kvm_protected::GuestShape,
    machine::Machine,
    project::Project,
    run::{Boot, Run},
    sign::{Image, Key, SignError},
};
use kserv_model::{fdt, vm::GicVersion};
use std::time::Duration;

/// A host boots, and a guest in it: this takes a minute or two on a free CPU.
const LIMIT: Duration = Duration::from_secs(1800);
/// Marks of kvm-probe: what follows them.
const ORDINARY: u32 = 100;
const PROTECTED: u32 = 101;
const BEFORE: u32 = 102;
const AFTER: u32 = 103;
const PARTS: [u32; 4] = [ORDINARY, PROTECTED, BEFORE, AFTER];
/// Where the payload and its tree are: as in the mini host.
const IMAGE_AT: u64 = 0x4008_0000;
const TREE_AT: u64 = 0x4000_0000;
const VCPUS: u32 = 2;
/// Nothing in the boots depends on these, and they cost the same everywhere.
const QUIET: &str = "nowatchdog cryptomgr.notests=1 initcall_blacklist=jent_mod_init,crypto_kdf108_init";
/// The slow-down of a guest's steady work, in percent, on a machine with GICv3.
const SLOW_DOWN: f64 = 0.3;
/// The key of this run, which the core is told to trust.
const SEED: [u8; 32] = [9; 32];

/// The guest's rows, and what they are here.
const ROWS: &[(&str, &str)] = &[
    ("psci_version", "PSCI_VERSION"),
    ("affinity_info", "AFFINITY_INFO"),
    ("id_register", "ID register read (ID_AA64PFR0_EL1)"),
    ("host_register", "read of the physical timer (CNTP_CTL_EL0)"),
    ("gicd", "read of the in-kernel interrupt controller (GICD_CTLR)"),
    ("pl011", "MMIO to user space and back"),
    ("sgi_self", "SGI to self, until acknowledged and ended"),
    ("ipi", "IPI to another vCPU, until acknowledged, both CPUs' instructions"),
    ("timer_polling", "virtual timer, deadline to acknowledge, polling"),
    ("timer_wfi", "virtual timer, deadline to acknowledge, after WFI"),
    ("touch_page", "first touch of memory in small pages, for each of 4 KiB"),
    ("touch_block", "first touch of memory in huge pages, for each of 2 MiB"),
];

/// A machine to measure on.
struct Host<'a> {
    gic: GicVersion,
    cpu: &'a str,
}

impl Host<'_> {
    fn gic(&self) -> u32 {
        if self.gic == GicVersion::V2 { 2 } else { 3 }
    }

    fn guest_gic(&self) -> GuestGic {
        if self.gic == GicVersion::V2 { GuestGic::V2 } else { GuestGic::V3 }
    }
}

/// A run's figures.
#[derive(Debug)]
struct Measured {
    name: String,
    profile: Profile,
    console: String,
}

impl Measured {
    /// A row of the payload: all of it, and at EL2 in the core. `part`: [`ORDINARY`] or [`PROTECTED`].
    fn row(&self, part: u32, path: &Path) -> Option<(f64, Option<f64>)> {
        let profile = self.profile.part(part, &PARTS)?;
        cost(path, &profile, said_in(&self.console, part)?, least(&profile, 0)?)
    }

    /// The marks of each Debian guest, with those around it.
    fn guests(&self) -> impl Iterator<Item = &[(u32, Count)]> {
        let guests = self.profile.marks().split_inclusive(|(mark, _)| *mark == AFTER);
        guests.filter_map(|marks| marks.get(marks.iter().position(|(mark, _)| *mark == BEFORE)?..))
    }

    /// Instructions of such a guest, all and in the core, from QEMU's start to its end without the work in between; and the work.
    fn guest(&self, number: usize) -> Option<(Count, Steady)> {
        let marks = self.guests().nth(number)?;
        let at = |mark: u32| Some(marks.iter().find(|(number, _)| *number == mark)?.1);
        let (whole, work) = (at(AFTER)? - at(BEFORE)?, at(DONE)? - at(BOOTED)?);
        Some((whole - work, Steady::of(marks)?))
    }
}

/// What the payload said in a part of the run.
fn said_in(console: &str, part: u32) -> Option<&str> {
    let starts = if part == ORDINARY { "probe: an ordinary VM" } else { "probe: a protected VM" };
    console.split(starts).nth(1)?.split("probe: vCPU").next()
}

impl Bench {
    /// Adds the rows of a Linux host's VMs.
    pub(super) fn kvm(
        &self,
        project: &Project,
        table: &mut Table,
        progress: &mut impl FnMut(&str),
    ) -> Result<(), BenchError> {
        let hosts =
            [Host { gic: GicVersion::V2, cpu: GICV2_CPU }, Host { gic: GicVersion::V3, cpu: self.cpu.as_str() }];
        for host in hosts.iter().take(if self.quick { 1 } else { 2 }) {
            let own = self.run_host(project, host, false, progress)?;
            let driver = self.run_host(project, host, true, progress)?;
            let bare = self.bare(project, (host.gic(), host.cpu), &guest_line(), progress)?;
            for (part, kind) in [(ORDINARY, "ordinary"), (PROTECTED, "protected")] {
                table.heading(&format!(
                    "VMs of a Linux host, {kind}, GICv{}, {}, in instructions: core and driver, KVM nVHE, ratio",
                    host.gic(),
                    host.cpu
                ));
                let id = |row: &str| format!("kvm.gicv{}.{kind}.{row}", host.gic());
                for (name, what) in ROWS {
                    let path = PATHS.iter().find(|path| path.name == *name);
                    let rows = path.and_then(|path| Some((driver.row(part, path)?, own.row(ORDINARY, path)?)));
                    let ((all, core), (of_own, _)) =
                        rows.ok_or_else(|| BenchError::NotSaid { name: driver.name.clone(), what: name })?;
                    let ordinary = path.filter(|_| part == PROTECTED).and_then(|path| driver.row(ORDINARY, path));
                    let whole_way = path.and_then(|path| path.budget).filter(|_| host.gic == GicVersion::V3);
                    let near = ordinary.map(|(all, _)| all * NOT_MORE_THAN);
                    let most = whole_way.into_iter().chain(near).fold(of_own, f64::min);
                    push(table, Row::new(&id(name), what, all), core, of_own, most);
                }
                // The driver's host has an ordinary guest, then a protected one.
                let guests = (driver.guest(usize::from(part == PROTECTED)), own.guest(0));
                let (Some((boot, steady)), Some((of_own, own_steady))) = guests else {
                    return Err(BenchError::NotSaid { name: driver.name.clone(), what: "the guest's boot and work" });
                };
                let row = Row::count(&id("boot"), "Debian in QEMU, from QEMU's start to its end", boot.all);
                push(table, row, Some(boot.core as f64), of_own.all as f64, of_own.all as f64);
                let what = "its steady work, all rounds";
                table.push(Row::compared(&id("steady"), what, steady.all, own_steady.all));
                table.push(Row::count(&id("steady.el2"), "  of these at EL2", steady.core));
                for ((what, _), (here, there)) in WORKS.iter().zip(steady.least.into_iter().zip(own_steady.least)) {
                    let id = id(&format!("steady.{what}"));
                    table.push(Row::compared(&id, &format!("  the round that took the least: {what}"), here, there));
                }
                let what = "  slow-down beside the same work without a hypervisor, in percent";
                let row = Row::percent(&id("steady.slowdown"), what, steady.slow_down(&bare));
                let row = row.beside(own_steady.slow_down(&bare));
                table.push(if host.gic == GicVersion::V3 { row.budget(Budget::AtMost(SLOW_DOWN)) } else { row });
            }
        }
        Ok(())
    }

    fn run_host(
        &self,
        project: &Project,
        host: &Host<'_>,
        driver: bool,
        progress: &mut impl FnMut(&str),
    ) -> Result<Measured, BenchError> {
        let whose = if driver { "core and driver" } else { "the kernel's own KVM" };
        let name = format!("VMs of a Linux host, {whose}, GICv{}", host.gic());
        progress(&format!("{name}, with the profiler"));
        let dir = project.root().join("target/bench");
        create_dir(&dir)?;
        let counters = dir.join(format!("counters-kvm-{}-{}", host.gic(), if driver { "driver" } else { "own" }));
        let machine = Machine::virt().gic(host.gic()).cpu(host.cpu).smp(VCPUS).memory(&self.memory).el2(true);
        let mut run = Run::new(project, counting(project, machine, &counters))
            .boot(if driver { Boot::Core } else { Boot::NoCore })
            .append(QUIET)
            .timeout(LIMIT);
        let key = || Key::from_seed(SEED);
        let module = if driver { Driver::Module(project.driver(&self.kernel)) } else { Driver::Own };
        let mut guest = KvmHost::new(project, &self.kernel, module)
            .guest_file("/bin/workload", read(&dir.join("workload"))?)
            .guest_script(self.work() + "exit 0\n");
        if driver {
            let shape =
                GuestShape { vcpus: 1, memory: steady::MEMORY.into(), gic: host.guest_gic(), append: guest_line() };
            guest = guest.protected(shape, key());
        } else {
            run = run.append("kvm-arm.mode=nvhe");
        }
        let (payload, tree) = (read(&project.guest("bench"))?, payload_tree(host.guest_gic()));
        run = run
            .file("/bin/kvm-probe", read(&dir.join("kvm-probe"))?)
            .file("/bench/manifest", manifest(&key(), &payload, &tree)?)
            .file("/bench/tree", tree)
            .file("/bench/payload", payload);
        let done = guest.equip(run.kernel(&self.kernel))?.script(script(host, driver)).finish()?;
        if !done.is_success() {
            return Err(BenchError::Failed { name, story: done.story(), tail: done.tail(30) });
        }
        if !driver && !done.console.contains("bench: nVHE") {
            return Err(BenchError::NotSaid { name, what: "nVHE" });
        }
        let profile = profile_of(&counters)?;
        Ok(Measured { name, profile, console: done.console })
    }
}

/// A row beside what the kernel's own KVM takes.
fn push(table: &mut Table, row: Row, core: Option<f64>, own: f64, most: f64) {
    let id = row.id().to_owned();
    table.push(row.beside(own).budget(Budget::AtMost(most)));
    if let Some(core) = core {
        table.push(Row::new(&format!("{id}.el2"), "  of these at EL2", core));
    }
}

/// The end of a Debian guest's command line.
fn guest_line() -> String {
    format!("{QUIET} {}", super::QUIET)
}

/// What the payload finds in x0: the mini host's tree.
pub fn payload_tree(gic: GuestGic) -> Vec<u8> {
    let gic = if gic == GuestGic::V3 { GicVersion::V3 } else { GicVersion::V2 };
    fdt::build(&fdt::Machine { vcpus: VCPUS as usize, memory: MEMORY, gic, bootargs: "", initrd: None })
}

fn manifest(key: &Key, payload: &[u8], tree: &[u8]) -> Result<Vec<u8>, SignError> {
    let images = [Image { gpa: IMAGE_AT, content: payload }, Image { gpa: TREE_AT, content: tree }];
    key.sign(&images, IMAGE_AT, TREE_AT)
}

/// What the host does: the payload, then a guest; with the driver both once more, protected.
fn script(host: &Host<'_>, driver: bool) -> String {
    let gic = host.gic();
    let probe =
        |kind: &str| format!("kvm-probe bench{kind} /bench/payload /bench/tree {gic} || no_kvm \"the payload\"\n");
    // Nothing of the host's own meanwhile.
    let guest = "kvm-probe mark before; vm < /dev/null > /tmp/guest; kvm-probe mark after
cat /tmp/guest; grep -q 'script ended with status 0' /tmp/guest || no_kvm \"the guest\"\n";
    // Not every CPU has a source of random numbers: until the kernel has made some itself, each system call hashes for 9,000 instructions, and QEMU
    // would wait for a second or two.
    let mut script = format!("{USE}GIC={gic} APPEND='{}'\nhead -c 16 /dev/random > /dev/null\n", guest_line());
    if driver {
        // The guest that is signed comes last: until then there is no signed one.
        let debugfs = "/sys/kernel/debug/corevisor_kvm/manifest";
        script += "mv /guest/manifest /guest/signed\nkvm_up\nmount -t debugfs debugfs /sys/kernel/debug\n";
        script += &format!("{}cat /bench/manifest > {debugfs}\n{}{guest}", probe(""), probe("-protected"));
        script += &format!("mv /guest/signed /guest/manifest\ncat /guest/manifest > {debugfs}\n");
        script += &format!("echo 1 > /sys/module/corevisor_kvm/parameters/protected\n{guest}");
    } else {
        script += "kvm_up\n! dmesg | grep -qE ' Hyp (nVHE )?mode initialized' || echo 'bench: nVHE'\n";
        script += &format!("{}{guest}", probe(""));
    }
    script + "exit 0\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::vms::PATHS, sign::verify};

    #[test]
    fn every_row_is_one_of_the_payloads() {
        for (name, _) in ROWS {
            assert!(PATHS.iter().any(|path| path.name == *name), "{name}");
        }
    }

    #[test]
    fn the_rows_of_each_vm_are_its_own() {
        let marks = "mark 100 0 0\nmark 0 0 0\nmark 1 64 0\nmark 2 100 0\nmark 3 3364 64\n\
                     mark 101 4000 64\nmark 0 4000 64\nmark 1 4064 64\nmark 2 5000 64\nmark 3 11464 3264\n\
                     mark 102 20000 4000\nmark 103 30000 4500\nmark 102 31000 5000\nmark 1 32000 5100\nmark 3 33000 5100\nmark 9 33001 5100\n\
                       mark 10 33003 5100\nmark 11 33006 5100\nmark 12 33010 5100\nmark 4 34000 5200\nmark 103 51000 6000\nmark 257 60000 6000\n";
        let console = "probe: an ordinary VM, GICv2\nguest bench: frequency 62500000\nguest bench: row timer_wfi 32/32\n\
                       probe: vCPU 0 ends with exit 24\nprobe: a protected VM, GICv2\nguest bench: frequency 62500000\n\
                       guest bench: row timer_wfi 64/32\nprobe: vCPU 0 ends with exit 24\n";
        let run =
            Measured { name: String::new(), profile: Profile::parse(marks).unwrap(), console: console.to_owned() };
        let row = |part, name: &str| run.row(part, PATHS.iter().find(|path| path.name == name).unwrap());
        assert_eq!(row(ORDINARY, "psci_version"), Some((100.0, Some(2.0))));
        assert_eq!(row(PROTECTED, "psci_version"), Some((200.0, Some(100.0))));
        assert_eq!((row(ORDINARY, "timer_wfi"), row(PROTECTED, "timer_wfi")), (Some((16.0, None)), Some((32.0, None))));
        assert_eq!(row(ORDINARY, "ipi"), None);
        assert_eq!((run.guests().count(), run.guest(0)), (2, None));
        let steady = Steady { all: 1000, core: 100, least: [1, 2, 3, 4] };
        assert_eq!(run.guest(1), Some((Count { all: 18_000, core: 900 }, steady)));
    }

    #[test]
    fn the_probe_sets_the_marks_and_says_what_is_looked_for() {
        let source = include_str!("../../../../tests/host-programs/kvm-probe/bench.c");
        for mark in PARTS {
            assert!(source.contains(&format!("MARK({mark});")), "{mark}");
        }
        for text in ["probe: %s VM", "\"a protected\" : \"an ordinary\"", "probe: vCPU %d"] {
            assert!(source.contains(text), "{text}");
        }
        assert!(source.contains(&format!("MEMORY = {} << 20", MEMORY >> 20)));
        assert_eq!(IMAGE_AT - TREE_AT, 0x80000);
        assert!(source.contains("IMAGE_AT = 0x80000"));
    }

    #[test]
    fn the_payload_is_signed_for_where_the_probe_puts_it() {
        let key = Key::from_seed(SEED);
        let (payload, tree) = (b"payload", payload_tree(GuestGic::V3));
        let images = [Image { gpa: IMAGE_AT, content: payload }, Image { gpa: TREE_AT, content: &tree }];
        verify(&manifest(&key, payload, &tree).unwrap(), key.public(), &images, Some((IMAGE_AT, TREE_AT))).unwrap();
        assert!(String::from_utf8_lossy(&tree).contains("arm,gic-v3"));
    }
}
