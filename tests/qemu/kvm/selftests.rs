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

/// A test; what it says of the driver, and of the kernel's own KVM, on cortex-a72 with GICv2. Reasons: docs/kvm-api.md.
const TESTS: &[(&str, Verdict, Verdict)] = &[
    ("aarch32_id_regs", Passes, Skipped),
    ("arch_timer", Fails, Skipped),
    ("arch_timer_edge_cases", Fails, Fails),
    ("coalesced_io_test", Skipped, Passes),
    ("get-reg-list", Fails, Passes),
    ("guest_print_test", Passes, Passes),
    ("hypercalls", Fails, Passes),
    ("kvm_binary_stats_test", Skipped, Passes),
    ("kvm_create_max_vcpus", Passes, Passes),
    ("no-vgic-v3", Skipped, Skipped),
    ("page_fault_test", Fails, Passes),
    ("psci_test", Skipped, Passes),
    ("set_id_regs", Skipped, Fails),
    ("set_memory_region_test", Passes, Passes),
    ("smccc_filter", Skipped, Passes),
    ("steal_time", Skipped, Passes),
    ("vcpu_width_config", Skipped, Passes),
    ("vgic_init", Fails, Fails),
    ("vgic_irq", Skipped, Skipped),
    ("vgic_lpi_stress", Skipped, Skipped),
    ("vpmu_counter_access", Skipped, Skipped),
];

pub fn cases() -> Vec<Case> {
    [driver(), Host::new(Whose::Own, 2)]
        .into_iter()
        .map(|host| {
            let name = format!("{} of the kernel's selftests say what is known of them: {}", TESTS.len(), host.name());
            Case::new("kvm", name, move |bed| say(bed, &host)).only_in_full_if(true)
        })
        .collect()
}

fn say(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let folder = made::kvm_selftests(bed)?;
    let mut run = host.run(bed, "")?.timeout(LIMIT * 3);
    let mut script = String::from("driver_up\n");
    for (name, ..) in TESTS {
        run = run.file(format!("/selftests/{name}"), std::fs::read(folder.join(name))?);
        script += &format!("one {name}\n");
    }
    // 4 is the selftests' own status for what is skipped.
    let one = r#"
        one() {
            timeout 100 /selftests/$1 > /tmp/said 2>&1
            case $? in
            0) verdict=passes ;;
            4) verdict="is skipped" ;;
            124 | 143) verdict="does not end" ;;
            *) verdict=fails ;;
            esac
            [ "$verdict" = passes ] || tail -n 8 /tmp/said
            echo "selftest $1 $verdict"
        }
    "#;
    let done = finish(run, &format!("{one}\n{script}"))?;
    let expected = TESTS.iter().map(|(name, driver, own)| {
        let verdict = if host.whose == Whose::Driver { driver } else { own };
        format!("selftest {name} {}", verdict.name())
    });
    let other: Vec<_> = expected.filter(|line| !done.console.lines().any(|said| said == line)).collect();
    let said: Vec<_> = done.console.lines().filter(|line| line.starts_with("selftest ")).collect();
    done.check(other.is_empty(), format!("not so: {}\nbut: {}", other.join(", "), said.join(", ")))
}
