//! Debian's stress-ng, which verifies what it computes and what the kernel does for it: in a guest and in the host at the same time, under core and driver,
//! and by the same table under the kernel's own KVM.

use super::{Host, Whose, driver, finish};
use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, LIMIT},
    made,
    runner::Case,
};
use Count::{AtLeast, Exactly};

/// How many operations a stressor says that it made.
#[derive(Clone, Copy)]
enum Count {
    /// This, wherever it runs. More or fewer than it was told where its two instances share them by whole rounds.
    Exactly(u32),
    /// Those are counted by several processes or by timers that go on meanwhile: half of what it was told is surely there.
    AtLeast(u32),
}

impl Count {
    fn agrees(self, said: u32) -> bool {
        match self {
            Exactly(count) => said == count,
            AtLeast(count) => said >= count,
        }
    }
}

/// Stressors that verify; how many operations two instances of each are to make together, what else they are told, and what they say.
const STRESSORS: &[(&str, u32, &str, Count)] = &[
    // Floating point, SIMD, registers.
    ("fp", 20, "", Exactly(36)),
    ("vecfp", 20, "", Exactly(320)),
    ("vecmath", 200, "", Exactly(200)),
    ("vecshuf", 40, "", Exactly(40)),
    ("vecwide", 200, "", Exactly(224)),
    ("veccmp", 2000, "", Exactly(2000)),
    ("fma", 1000, "", Exactly(1000)),
    ("trig", 20, "", Exactly(24)),
    ("matrix", 200, "", Exactly(200)),
    ("regs", 1000, "", Exactly(1000)),
    ("context", 10, "", Exactly(10)),
    // Integers, atomic accesses, all methods of "cpu".
    ("cpu", 90, "", Exactly(90)),
    ("atomic", 40, "", AtLeast(20)),
    ("str", 1000, "", Exactly(1000)),
    ("hash", 500, "", Exactly(500)),
    ("bsearch", 20, "", Exactly(20)),
    ("mergesort", 3, "", Exactly(4)),
    // Memory.
    ("vm", 500, "--vm-bytes 16M", Exactly(500)),
    ("malloc", 500, "", Exactly(500)),
    ("memcpy", 20, "", Exactly(20)),
    ("mmap", 10, "--mmap-bytes 1M", Exactly(10)),
    ("munmap", 100, "", Exactly(100)),
    ("mremap", 10, "--mremap-bytes 1M", Exactly(10)),
    ("memfd", 5, "--memfd-bytes 4M", Exactly(6)),
    // Timers and clocks.
    ("timer", 500, "", AtLeast(250)),
    ("timerfd", 500, "", AtLeast(250)),
    ("itimer", 100, "", AtLeast(50)),
    ("nanosleep", 50, "", AtLeast(25)),
    ("hrtimers", 100, "", AtLeast(50)),
    ("alarm", 100, "", AtLeast(50)),
    ("clock", 100, "", Exactly(100)),
    // Signals.
    ("signal", 500, "", Exactly(500)),
    ("sigrt", 30, "", AtLeast(15)),
    ("sigsuspend", 100, "", AtLeast(50)),
    ("sigq", 200, "", AtLeast(100)),
    ("sigsegv", 500, "", Exactly(500)),
    ("sigtrap", 500, "", Exactly(500)),
    // Processes, threads, their scheduling.
    ("fork", 50, "", Exactly(50)),
    ("vfork", 200, "", Exactly(200)),
    ("clone", 30, "", Exactly(30)),
    ("pthread", 100, "", Exactly(100)),
    ("switch", 500, "", AtLeast(250)),
    ("futex", 100, "", AtLeast(50)),
    ("pipe", 500, "", AtLeast(250)),
    ("eventfd", 300, "", AtLeast(150)),
];

/// This one says that it has made no call on QEMU's `max`, in guest and host and under the kernel's own KVM alike.
const IDLE_ON_MAX: &str = "vfork";

/// Those that have something to do on this host.
fn stressors(host: &Host) -> impl Iterator<Item = (&'static str, u32, &'static str, Count)> {
    STRESSORS.iter().copied().filter(|(name, ..)| host.cpu != "max" || *name != IDLE_ON_MAX)
}

pub fn cases() -> Vec<Case> {
    [driver(), Host::new(Whose::Driver, 3), Host::new(Whose::Own, 2), Host::new(Whose::Own, 3)]
        .into_iter()
        .map(|host| {
            let name = format!(
                "{} stressors of stress-ng verify guest and host at once: {}",
                stressors(&host).count(),
                host.name()
            );
            Case::new("kvm", name, move |bed| verify(bed, &host.at_once())).only_in_full_if(true)
        })
        .collect()
}

/// How each ends, here (WHERE: guest, host); what it says if not well.
const STRESS: &str = r#"
stress() { # WHERE
    cd /tmp
    while read -r name operations more; do
        read -r before _ < /proc/uptime
        timeout 100 /stress/ld-linux-aarch64.so.1 --library-path /stress /stress/stress-ng --$name 2 --$name-ops $operations $more \
            --verify --metrics --timeout 90 --temp-path /tmp < /dev/null > /tmp/said 2>&1
        status=$?
        [ $status = 0 ] || cat /tmp/said
        read -r after _ < /proc/uptime
        echo "$1: $name from $before to $after s"
        echo "$1: $name has status $status, $(sed -n "s/.* metrc: *\[[0-9]*\] $name  *\([0-9]*\) .*/\1/p" /tmp/said) operations"
    done < /stress/list
}
"#;

/// Both come to the end of the table, each stressor content and with as many operations as it was told; neither kernel complains.
fn verify(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let list: String =
        stressors(host).map(|(name, operations, more, _)| format!("{name} {operations} {more}\n")).collect();
    let mut files = made::stress_ng(bed)?;
    files.push(("list".into(), list.into()));
    let guest = format!(
        "{FUNCTIONS}\n{STRESS}\nstress guest\nif complaints; then fail 'the guest kernel complains'; fi\nexit 0\n"
    );
    let mut run = host.run_with(bed, |host| {
        files.iter().fold(host.guest_script(guest), |host, (name, content)| {
            host.guest_file(format!("/stress/{name}"), content.clone())
        })
    })?;
    for (name, content) in files {
        run = run.file(format!("/stress/{name}"), content);
    }
    let script = format!(
        r#"
        VCPUS=2 GIC={gic} MEMORY=384M
        {STRESS}
        kvm_up
        stress host > /tmp/host.stress 2>&1 &
        host=$!
        vm_of_script || fail "the guest's status is $?"
        wait $host
        cat /tmp/host.stress
        "#,
        gic = host.gic
    );
    let done = finish(run.timeout(LIMIT * 2), &script)?;
    done.says("corevisor-guest: script ended with status 0")?;
    let said = |place: &str, name: &str| {
        let start = format!("{place}: {name} has status 0, ");
        let line =
            done.console.lines().find_map(|line| line.trim_end().strip_prefix(&start)?.strip_suffix(" operations"));
        line.and_then(|count| count.parse().ok())
    };
    let all = stressors(host).flat_map(|(name, _, _, count)| ["guest", "host"].map(|place| (place, name, count)));
    let other = all.filter(|(place, name, count)| !said(place, name).is_some_and(|said: u32| count.agrees(said)));
    let other: Vec<_> = other.map(|(place, name, _)| format!("{place}: {name}: {:?}", said(place, name))).collect();
    let lines: Vec<_> = done.console.lines().filter(|line| line.contains(" has status ")).collect();
    done.check(other.is_empty(), format!("not so: {}\nall: {}", other.join(", "), lines.join("\n")))
}
