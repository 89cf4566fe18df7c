//! The kernel's own KVM selftests, from the source of the host's kernel, under the driver and under the kernel's own KVM in the same QEMU.
//!
//! Here are those that end within a minute in QEMU; what the others do is in docs/kvm-api.md.

use super::{Host, Whose, driver, finish};
use crate::{
    bed::{Bed, Checks, Failure, LIMIT},
    made,
    runner::Case,
};
use Verdict::{Fails, Passes, Skipped};

/// What a test says of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passes,
    /// Something that it asks for is not there.
    Skipped,
    Fails,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Passes => "passes",
            Skipped => "is skipped",
            Fails => "fails",
        }
    }
}

/// What a test says of the driver, and of the kernel's own KVM. `None`: it is not run there, because it wants more than a minute.
type Said = Option<(Verdict, Verdict)>;

/// A test, with its arguments; on cortex-a72 with GICv2, and on max with GICv3. Reasons: docs/kvm-api.md.
const TESTS: &[(&str, Said, Said)] = &[
    ("aarch32_id_regs", Some((Passes, Skipped)), Some((Passes, Skipped))),
    // How late an interrupt may be, in microseconds: a machine in QEMU is not judged by its speed.
    ("arch_timer -e 200000", Some((Skipped, Skipped)), Some((Fails, Passes))),
    ("arch_timer_edge_cases", Some((Fails, Fails)), Some((Fails, Fails))),
    ("coalesced_io_test", Some((Skipped, Passes)), Some((Skipped, Passes))),
    ("debug-exceptions", None, Some((Fails, Passes))),
    ("get-reg-list", Some((Fails, Passes)), Some((Fails, Passes))),
    ("guest_print_test", Some((Passes, Passes)), Some((Passes, Passes))),
    ("hypercalls", Some((Fails, Passes)), Some((Fails, Passes))),
    ("kvm_binary_stats_test", Some((Skipped, Passes)), Some((Skipped, Passes))),
    ("kvm_create_max_vcpus", Some((Passes, Passes)), Some((Passes, Passes))),
    ("no-vgic-v3", Some((Skipped, Skipped)), Some((Fails, Passes))),
    ("page_fault_test", Some((Passes, Passes)), None),
    ("psci_test", Some((Skipped, Passes)), Some((Skipped, Passes))),
    ("set_id_regs", Some((Skipped, Fails)), Some((Skipped, Fails))),
    ("set_memory_region_test", Some((Passes, Passes)), Some((Passes, Passes))),
    ("smccc_filter", Some((Skipped, Passes)), Some((Skipped, Passes))),
    ("steal_time", Some((Skipped, Passes)), Some((Skipped, Passes))),
    ("vcpu_width_config", Some((Skipped, Passes)), Some((Skipped, Passes))),
    ("vgic_init", Some((Fails, Fails)), Some((Fails, Fails))),
    ("vgic_irq", Some((Skipped, Skipped)), Some((Passes, Passes))),
    ("vgic_lpi_stress", Some((Skipped, Skipped)), Some((Passes, Passes))),
    ("vpmu_counter_access", Some((Skipped, Skipped)), Some((Skipped, Passes))),
];

pub fn cases() -> Vec<Case> {
    [driver(), Host::new(Whose::Own, 2), Host::new(Whose::Driver, 3), Host::new(Whose::Own, 3)]
        .into_iter()
        .map(|host| {
            let number = on(&host).count();
            let name = format!("{number} of the kernel's selftests say what is known of them: {}", host.name());
            Case::new("kvm", name, move |bed| say(bed, &host)).only_in_full_if(true)
        })
        .collect()
}

/// The tests for a host, and what they say there.
fn on(host: &Host) -> impl Iterator<Item = (&'static str, Verdict)> {
    let (gic, driver) = (host.gic, host.whose == Whose::Driver);
    TESTS.iter().filter_map(move |(name, v2, v3)| {
        let (with_driver, with_own) = if gic == 2 { *v2 } else { *v3 }?;
        Some((*name, if driver { with_driver } else { with_own }))
    })
}

fn say(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let folder = made::kvm_selftests(bed)?;
    let mut run = host.run(bed, "")?.timeout(LIMIT * 3);
    let mut script = String::from("driver_up\n");
    for (name, _) in on(host) {
        let program = name.split(' ').next().unwrap_or(name);
        run = run.file(format!("/selftests/{program}"), std::fs::read(folder.join(program))?);
        script += &format!("one {name}\n");
    }
    // 4 is the selftests' own status for what is skipped.
    let one = r#"
        one() {
            timeout 100 /selftests/$* > /tmp/said 2>&1
            case $? in
            0) verdict=passes ;;
            4) verdict="is skipped" ;;
            124 | 143) verdict="does not end" ;;
            *) verdict=fails ;;
            esac
            [ "$verdict" = passes ] || tail -n 8 /tmp/said
            echo "selftest $* $verdict"
        }
    "#;
    let done = finish(run, &format!("{one}\n{script}"))?;
    let expected: Vec<_> = on(host).map(|(name, verdict)| format!("selftest {name} {}", verdict.name())).collect();
    done.check(!expected.is_empty(), "no selftest is known for this host, so none was run")?;
    let other: Vec<_> = expected.into_iter().filter(|line| !done.console.lines().any(|said| said == line)).collect();
    let said: Vec<_> = done.console.lines().filter(|line| line.starts_with("selftest ")).collect();
    done.check(other.is_empty(), format!("not so: {}\nbut: {}", other.join(", "), said.join(", ")))
}
