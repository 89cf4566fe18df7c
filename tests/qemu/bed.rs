//! What the cases stand on: the project, a host that examines itself, and checks that quote the console.

use corevisor_tool::{
    error::FileError,
    machine::Machine,
    outcome::{Finished, Outcome},
    project::Project,
    run::{NotSeen, Run, RunError},
};
use std::{fmt, time::Duration};

/// After so long a machine has hung. CI machines are slow and have other work; a healthy boot takes some seconds.
pub const LIMIT: Duration = Duration::from_secs(300);
/// The host's own watchdogs look at the clock: on a loaded machine they bark at QEMU. What really hangs ends at [`LIMIT`].
pub const NO_CLOCK: &str = "nowatchdog rcupdate.rcu_cpu_stall_suppress=1";
/// What the kernel tries of its own algorithms at each start: an eighth of a boot (CPU time in QEMU), and nothing of the core's.
pub const NO_SELF_TESTS: &str = "cryptomgr.notests=1 initcall_blacklist=jent_mod_init,crypto_kdf108_init";
/// Console lines that a failure shows.
const LINES: usize = 30;

/// What is not as it should be.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// Not so: `what`.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lines().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

macro_rules! failures {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        })*
    };
}
failures!(
    RunError,
    NotSeen,
    FileError,
    std::io::Error,
    corevisor_tool::initrd::InitrdError,
    corevisor_tool::modules::ModuleError,
    corevisor_tool::kvm::KvmError
);

/// Fails with `what` unless `condition`.
pub fn check(condition: bool, what: impl Into<String>) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::new(what)) }
}

/// What all cases share.
pub struct Bed {
    /// Where everything stands.
    pub project: Project,
}

impl Bed {
    /// A run of the core on `machine` that ends at [`LIMIT`] and in which the core reports what it counted: the kernel as it comes,
    /// and each CPU a thread of its own, so that they run at the same time.
    pub fn stock(&self, machine: Machine) -> Run {
        Run::new(&self.project, machine).timeout(LIMIT).append("corevisor.log=debug").append(NO_CLOCK)
    }

    /// The same at half the cost, for stories in which nothing depends on CPUs that run at the same time: they take turns, and one
    /// that only waits for another costs next to nothing; and the kernel does not test itself.
    pub fn run(&self, machine: Machine) -> Run {
        self.stock(machine.arg("-accel").arg("tcg,thread=single")).append(NO_SELF_TESTS)
    }
}

/// Shell functions for scripts in the host; [`HEALTH`] needs them too.
pub const FUNCTIONS: &str = r#"
fail() { echo "NOT SO: $*"; exit 1; }
is() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; }

# Bytes of RAM that the kernel knows, from /proc/iomem.
ram() {
    sum=0
    while read -r range _ what; do
        if [ "$what" = "System RAM" ]; then sum=$((sum + 0x${range#*-} - 0x${range%-*} + 1)); fi
    done < /proc/iomem
    echo $sum
}

# The gaps in and around RAM are the core's: START END (hexadecimal), one a line. For virt, whose RAM starts at 1 GiB.
gaps() { # SIZE-OF-RAM-IN-MIB
    at=$((0x40000000))
    while read -r range _ what; do
        [ "$what" = "System RAM" ] || continue
        start=$((0x${range%-*}))
        if [ $start -gt $at ]; then printf '%#x %#x\n' $at $start; fi
        at=$((0x${range#*-} + 1))
    done < /proc/iomem
    end=$((0x40000000 + $1 * 0x100000))
    if [ $end -gt $at ]; then printf '%#x %#x\n' $at $end; fi
}

complaints() { dmesg | grep -E 'WARNING:|Call trace|Internal error|BUG:|Unhandled fault|rcu: INFO'; }
"#;

/// The host examines itself: CPUs, memory, modules; disk and network if it has them; no complaint in its log. With `NET` it must have a card.
pub const HEALTH: &str = r#"
is "CPUs that are up" "$(nproc)" $CPUS
is "CPUs that are there" "$(cat /sys/devices/system/cpu/present | sed 's/^0-//')" $((CPUS - 1))
echo "host: RAM $(ram)"
total=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo)
[ $((total * 1024)) -gt $(($(ram) / 100 * 80)) ] || fail "of $(ram) bytes the kernel uses $total KiB"
grep -q '^virtio_blk ' /proc/modules || fail "the module virtio_blk is not loaded"
# The kernel's own choice: in a host the physical timer, in a guest of QEMU the virtual one.
dmesg | grep -q "arch_timer: cp15 timer(s) running at .* (${TIMER:-phys})" || fail "the clock does not run on the ${TIMER:-phys} timer"
is "clock source" "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" arch_sys_counter

if [ -e /dev/vda ]; then
    # The first MiB comes from the test, which looks for it in the second afterwards.
    dd if=/dev/vda of=/tmp/first bs=64k count=16 2>/dev/null || fail "the disk cannot be read"
    dd if=/tmp/first of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null || fail "the disk cannot be written"
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/vda bs=64k skip=16 count=16 2>/dev/null | cmp - /tmp/first || fail "the disk does not keep what is written"
fi
[ -z "$NET" ] || [ -e /sys/class/net/eth0 ] || fail "the network card is not there"
if [ -e /sys/class/net/eth0 ]; then
    ping -q -c 3 -i 0.2 -s 1000 10.0.2.2 || fail "no answer from the network"
fi
if complaints; then fail "the kernel complains"; fi
"#;

/// Runs `run` with a script that is [`HEALTH`] and then `more`; and looks at what host and core say.
/// The host's RAM must be all that the core was given but what the core says that it keeps.
pub fn healthy(run: Run, cpus: u32, more: &str) -> Result<Finished, Failure> {
    let net = if run.machine().has_net() { "1" } else { "" };
    let script = format!("{FUNCTIONS}\nCPUS={cpus} NET={net}\n{HEALTH}\n{more}\nexit 0\n");
    let done = run.script(script).finish()?;
    done.succeeded()?;
    done.says("under corevisor")?;
    let ram = done.number("host: RAM ")?;
    let all = done.number(&format!("corevisor: {cpus} CPUs, ")).or_else(|_| done.number("corevisor: 1 CPUs, "))? << 20;
    let kept = (done.number("the core keeps ")? + done.number("firmware and drivers keep ").unwrap_or(0)) << 10;
    done.check(
        ram == all - kept,
        format!("the host has {ram} bytes of RAM, not {all} without the {kept} of core and firmware"),
    )?;
    done.counted("host accesses denied", 0)?;
    done.counted("host instructions undefined", 0)?;
    done.says("host ends the run: ")?;
    let last = done.console.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    done.check(last.starts_with("corevisor: "), format!("another line came after the core's: {last:?}"))?;
    Ok(done)
}

/// Checks on a run that has ended; what fails quotes the end of the console.
pub trait Checks {
    /// Fails with `what` unless `condition`.
    fn check(&self, condition: bool, what: impl Into<String>) -> Result<(), Failure>;
    /// The host powered off, and its script was content.
    fn succeeded(&self) -> Result<(), Failure>;
    /// It ended so.
    fn ended(&self, outcome: &Outcome) -> Result<(), Failure>;
    /// The core refused to start, or stopped, with a line that has all of `texts`; it said so once.
    fn core_stopped(&self, texts: &[&str]) -> Result<(), Failure>;
    /// The console shows `text`.
    fn says(&self, text: &str) -> Result<(), Failure>;
    /// The console shows `text` so many times.
    fn says_times(&self, text: &str, times: usize) -> Result<(), Failure>;
    /// The decimal number behind the first `text` on the console.
    fn number(&self, text: &str) -> Result<u64, Failure>;
    /// The core counted `event` so many times, by its last report.
    fn counted(&self, event: &str, times: u64) -> Result<(), Failure>;
}

impl Checks for Finished {
    fn check(&self, condition: bool, what: impl Into<String>) -> Result<(), Failure> {
        check(condition, format!("{}\n({})\nlast console lines:\n{}", what.into(), self.story(), self.tail(LINES)))
    }

    fn succeeded(&self) -> Result<(), Failure> {
        self.check(self.is_success(), "the host did not come to a good end")
    }

    fn ended(&self, outcome: &Outcome) -> Result<(), Failure> {
        self.check(self.outcome == *outcome, format!("it should have ended so: {outcome}"))
    }

    fn core_stopped(&self, texts: &[&str]) -> Result<(), Failure> {
        let line = match &self.outcome {
            Outcome::CoreStopped(line) => line.as_str(),
            _ => return self.check(false, "the core should have stopped the machine"),
        };
        for text in texts {
            self.check(line.contains(text), format!("the core's line should say {text:?}: {line}"))?;
        }
        self.says_times("cannot start: ", 1)
    }

    fn says(&self, text: &str) -> Result<(), Failure> {
        self.check(self.console.contains(text), format!("the console should say {text:?}"))
    }

    fn says_times(&self, text: &str, times: usize) -> Result<(), Failure> {
        let found = self.console.matches(text).count();
        self.check(found == times, format!("the console should say {text:?} {times} times, not {found}"))
    }

    fn number(&self, text: &str) -> Result<u64, Failure> {
        self.says(text)?;
        let behind = self.console.split_once(text).map_or("", |(_, behind)| behind);
        let digits = behind.find(|c: char| !c.is_ascii_digit()).map_or(behind, |end| &behind[..end]);
        digits.parse().map_err(|_| Failure::new(format!("no number behind {text:?}: {:?}", behind.lines().next())))
    }

    fn counted(&self, event: &str, times: u64) -> Result<(), Failure> {
        let text = format!("corevisor: debug: {event}: ");
        let last = self.console.rsplit_once(&text).and_then(|(_, rest)| rest.lines().next()).unwrap_or("nothing");
        self.check(last.trim() == times.to_string(), format!("{event}: the core counted {last}, not {times}"))
    }
}
