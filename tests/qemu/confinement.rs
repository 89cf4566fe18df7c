//! A host that pokes at what is not its own: it keeps running and learns nothing.

use crate::{
    bed::{Bed, Checks, FUNCTIONS, Failure, check},
    made,
    placed::Placed,
    runner::Case,
};
use corevisor::{abstract_machine::per_cpu::Event, interface::INTERFACE_VERSION};
use corevisor_tool::{machine::Machine, outcome::Finished, raspi::set, run::Run};
use dtoolkit::{memreserve::MemoryReservation, model::DeviceTreeNode};

/// So many refused accesses the core tells of.
const TOLD: u64 = 32;

/// The cases.
pub fn cases() -> Vec<Case> {
    let new = |name: &str, act: fn(&Bed) -> Result<(), Failure>| Case::new("confinement", name, act);
    vec![
        new(
            "a process that reads, writes or executes the core's memory gets a bus error, the host goes on",
            core_memory,
        ),
        new("the virtualization parts of a GICv2 are out of reach", |bed| {
            out_of_reach(bed, 2, "0x08030000 0x08040000 0x08041000 0x0f000000 0xc0000000")
        }),
        new("the legacy frames of a GICv3 and what the device tree does not describe are out of reach", |bed| {
            out_of_reach(bed, 3, "0x08010000 0x08030000 0x08040000 0x0f000000 0xc0000000")
        }),
        new(
            "what the device tree reserves for firmware is out of reach, what it reserves for a driver is not",
            reserved,
        ),
        new("a process whose kernel reads or writes the core's memory is killed, the host goes on", oopses),
        new(
            "a kernel that copies from or to what is not its own for a process gets an error, and nobody is killed",
            copies,
        ),
        new(
            "unknown calls do not exist, those of Linux's EL2 boot stub neither; the core's own and PSCI's are answered",
            all_calls,
        ),
    ]
}

/// Shell functions that poke, and count what the core must have refused.
const POKING: &str = r#"
refused=0
# Reads and writes an address in several widths: a bus error each time, and no output.
poke() {
    for width in 8 16 32 64; do
        for value in '' 0x55; do
            devmem $1 $width $value > /tmp/out 2> /tmp/error
            status=$?
            [ $status = 135 ] || fail "devmem $1 $width $value: status $status, $(cat /tmp/out /tmp/error)"
            [ ! -s /tmp/out ] || fail "devmem $1 $width $value gave $(cat /tmp/out)"
            refused=$((refused + 1))
        done
    done
}
"#;

/// Runs `script`, which may `poke`; the core must have counted and told all of it, and nothing else.
pub fn poked(run: Run, script: &str) -> Result<Finished, Failure> {
    was_poked(run.script(poking(script)).finish()?)
}

/// A script that may `poke`, whole.
fn poking(script: &str) -> String {
    format!("{FUNCTIONS}{POKING}{script}\necho \"host: refused $refused\"\nexit 0\n")
}

/// Judges the run of [`poking`].
fn was_poked(done: Finished) -> Result<Finished, Failure> {
    done.succeeded()?;
    let refused = done.number("host: refused ")?;
    done.check(refused > 0, "nothing was tried")?;
    done.counted("host accesses denied", refused)?;
    let told = done.console.matches("denied (").count() as u64;
    // The core falls silent after some, so that nobody drowns its other lines.
    done.check(told == refused.min(TOLD), format!("the core told of {told} accesses, {refused} were refused"))?;
    Ok(done)
}

/// Executed not by the kernel: Linux shows the code that it died at, so it reads what it may not read while it holds the lock of all
/// oopses, and stops itself. A bus that refuses a fetch does the same to it.
fn core_memory(bed: &Bed) -> Result<(), Failure> {
    let script = r#"
        insmod /lib/corevisor_test.ko || fail "the test module does not load"
        gaps 2048 > /tmp/gaps
        while read -r start end; do
            echo "host: not mine $start $end"
            poke $start
            poke $(printf '%#x' $(((start + end) / 2)))
            poke $(printf '%#x' $((end - 2048)))
            for address in $start $((start + 0x10000)) $((end - 2048)); do
                jump $address > /tmp/out 2> /tmp/error
                status=$?
                is "status of jump $address ($(cat /tmp/out /tmp/error))" $status 135
                refused=$((refused + 1))
            done
        done < /tmp/gaps
        is "gaps in RAM" $(wc -l < /tmp/gaps) 2
        if complaints; then fail "the kernel complains"; fi
        # What is the host's still works.
        [ "$(dd if=/dev/zero bs=1M count=64 2>/dev/null | wc -c)" = 67108864 ] || fail "memory"
    "#;
    let run = bed.run(Machine::virt().smp(2)).file("/lib/corevisor_test.ko", made::module(bed)?);
    let done = poked(run.file("/bin/jump", made::program(bed, "jump")?), script)?;
    let at = done.console.split_once("at 0x").and_then(|(_, rest)| rest.split_once(',')).map_or("", |(at, _)| at);
    done.says(&format!("host: not mine 0x{at} "))
}

fn out_of_reach(bed: &Bed, gic: u32, addresses: &str) -> Result<(), Failure> {
    let script = format!("for address in {addresses}; do poke $address; done");
    poked(bed.run(Machine::virt().gic(gic).smp(1)), &script).map(|_| ())
}

/// Each kind of reservation: `no-map` or not, a driver's or nobody's.
fn reserved(bed: &Bed) -> Result<(), Failure> {
    let script = r#"
        for address in 0x50000000 0x5000f800 0x50201000 0x502027f8 0x50400000; do poke $address; done
        for address in 0x50600000 0x50800f00; do
            devmem $address 64 0x1122334455667788 || fail "a driver's memory at $address cannot be written"
            is "memory at $address" "$(devmem $address 64)" 0x1122334455667788
        done
        echo "host: RAM $(ram)"
    "#;
    let mut placed = Placed::virt(bed, 1, &[], &poking(script))?;
    placed.tree.memory_reservations.push(MemoryReservation::new(0x5000_0000, 0x1_0000));
    let root = &mut placed.tree.root;
    let mut coprocessor = DeviceTreeNode::new_unchecked("coprocessor");
    set(&mut coprocessor, "memory-region", &0x77_u32.to_be_bytes());
    root.add_child(coprocessor);
    let mut all = DeviceTreeNode::new_unchecked("reserved-memory");
    set(&mut all, "#address-cells", &2_u32.to_be_bytes());
    set(&mut all, "#size-cells", &2_u32.to_be_bytes());
    set(&mut all, "ranges", &[]);
    let mut reserve = |name: &str, base: u64, size: u64, more: &[(&str, &[u8])]| {
        let mut node = DeviceTreeNode::new_unchecked(name);
        set(&mut node, "reg", &[base.to_be_bytes(), size.to_be_bytes()].concat());
        more.iter().for_each(|(name, value)| set(&mut node, name, value));
        all.add_child(node);
    };
    reserve("tf-a@50201000", 0x5020_1000, 0x1800, &[("no-map", &[])]);
    reserve("splash@50400000", 0x5040_0000, 0x1000, &[]);
    reserve("dsp@50600000", 0x5060_0000, 0x1000, &[("no-map", &[]), ("phandle", &0x77_u32.to_be_bytes())]);
    reserve("log@50800000", 0x5080_0000, 0x1000, &[("no-map", &[]), ("compatible", b"nvmem-rmem\0")]);
    root.add_child(all);
    let done = was_poked(placed.run(bed)?.finish()?)?;
    let kept = done.number("the core keeps ")? + 64 + 8 + 4 + 4 + 4;
    done.check(done.number("host: RAM ")? == (2 << 30) - (kept << 10), "what lies around them is not RAM")
}

/// Shell functions over `tests/host-module`.
pub const CALLING: &str = r#"
insmod /lib/corevisor_test.ko || fail "the test module does not load"
call() { echo "$*" > /proc/corevisor || fail "$*: no answer"; cat /proc/corevisor; }
none=ffffffffffffffff
# The call answers x0 with this.
answers() { # ANSWER COMMAND...
    want=$1
    shift
    got=$(call "$@")
    is "$*" "${got%% *}" $want
}
"#;

/// Runs `script` in a host with the test module.
pub fn with_module(bed: &Bed, script: &str) -> Result<Finished, Failure> {
    let run = bed.run(Machine::virt().smp(2)).file("/lib/corevisor_test.ko", made::module(bed)?);
    let (major, minor) = (INTERFACE_VERSION >> 16, INTERFACE_VERSION & 0xffff);
    let table = format!("version={INTERFACE_VERSION:x}\nmajor={major:x}\nminor={minor:x}\nevents={:x}\n", Event::COUNT);
    let done = run.script(format!("{FUNCTIONS}{CALLING}{table}{script}\nexit 0\n")).finish()?;
    done.succeeded()?;
    Ok(done)
}

fn oopses(bed: &Bed) -> Result<(), Failure> {
    let script = r#"
        refused=0
        killed() {
            (echo "$*" > /proc/corevisor) 2>/dev/null
            status=$?
            [ $status = 137 ] || [ $status = 139 ] || fail "$*: status $status"
            refused=$((refused + 1))
            is "oopses after '$*'" $(dmesg | grep -cE 'Internal error: Oops: 0*960000[26]1 ') $refused
        }
        gaps 2048 > /tmp/gaps
        while read -r start end; do
            for address in $start $(printf '%#x' $((end - 8))); do
                killed read $address
                killed readcached $address
                killed write $address 0
            done
        done < /tmp/gaps
        answers $version hvc c6008000
        answers 0 hvc c6008001 1
        is "refused accesses" "$(call hvc c6008001 1 | cut -d ' ' -f 2)" $(printf '%x' $refused)
        echo "host: refused $refused"
    "#;
    let done = with_module(bed, script)?;
    let refused = done.number("host: refused ")?;
    done.check(refused == 12, "not everything was tried")?;
    done.counted("host accesses denied", refused)
}

/// As a VMM does that gives its memory away and names it in a call: the kernel has a fix-up for what it copies, and the core's abort must be one for which it looks for it.
fn copies(bed: &Bed) -> Result<(), Failure> {
    let script = r#"
        denied() { echo $((0x$(call hvc c6008001 1 | cut -d ' ' -f 2))); }
        gaps 2048 > /tmp/gaps
        copied=0
        while read -r start end; do
            for address in $start $((end - 8)); do
                before=$(denied)
                is "copies of $address" "$(jump $address copy 2>&1)" "write: Bad address, read: Bad address"
                [ $(denied) -ge $((before + 2)) ] || fail "the core refused nothing"
                copied=$((copied + 1))
            done
        done < /tmp/gaps
        if complaints; then fail "the kernel complains"; fi
        echo "host: copied $copied"
    "#;
    let run = bed.run(Machine::virt().smp(2)).file("/lib/corevisor_test.ko", made::module(bed)?);
    let run = run.file("/bin/jump", made::program(bed, "jump")?);
    let done = run.script(format!("{FUNCTIONS}{CALLING}{script}\nexit 0\n")).finish()?;
    done.succeeded()?;
    done.check(done.number("host: copied ")? == 4, "not everything was tried")
}

/// One host makes them all.
fn all_calls(bed: &Bed) -> Result<(), Failure> {
    let script = [UNKNOWN_CALLS, CORE_CALLS, SMC_CALLS].join("\n");
    let done = with_module(bed, &script)?;
    done.counted("host instructions undefined", 0)?;
    done.counted("host accesses denied", 0)?;
    let line = |text: &str| {
        let line = done.console.lines().find_map(|line| Some(line.split_once(text)?.1.to_owned()));
        line.ok_or_else(|| Failure::new(format!("no line with {text:?}")))
    };
    let (logged, said) = (line("host: the log's first line: corevisor: ")?, line("corevisor: ")?);
    check(logged == said, format!("the log starts with {logged:?}, the console with {said:?}"))
}

/// The calls of Linux's EL2 boot stub, and numbers that nobody has.
const UNKNOWN_CALLS: &str = r#"
    hypercalls() { echo $((0x$(call hvc c6008001 2 | cut -d ' ' -f 2))); }
    before=$(hypercalls)
    for number in 0 1 2 3 4 5 6 7 ffffffffffffffff 80000000 84000000 84000001 86000000 c6000000 c6007fff c6008004 \
        c600ffff 8600ff02 8600ff04 c5000020 46008000 86008000 1c6008000; do
        answers $none hvc $number 40200000 1 2
        answers $none hvc1 $number
    done
    answers $none hvc1 c6008000
    # With the stub's SET_VECTORS or SOFT_RESTART there would be no core that still answers.
    answers $version hvc c6008000
    # 23 numbers by either instruction, two more, and the question itself.
    is "hypercalls" $(($(hypercalls) - before)) $((2 * 23 + 2 + 1))
"#;

/// The core's version, counters and log.
const CORE_CALLS: &str = r#"
    answers $version hvc c6008000
    for event in $(seq 0 $((0x$events - 1))); do answers 0 hvc c6008001 $(printf '%x' $event); done
    for event in $events ffffffffffffffff; do answers fffffffffffffffd hvc c6008001 $event; done
    is "accesses denied" "$(call hvc c6008001 1)" "0 0 0 0"
    first=$(call hvc c6008001 2 | cut -d ' ' -f 2)
    is "hypercalls, asked for again" "$(call hvc c6008001 2 | cut -d ' ' -f 2)" $(printf '%x' $((0x$first + 1)))
    is "UID" "$(call hvc 8600ff01)" "a1f47f1d 1c4b4e6a 4ec0559c feca5051"
    is "revision" "$(call hvc 8600ff03)" "$major $minor 0 0"
    call log > /tmp/log
    echo "host: the log's first line: $(head -n 1 /tmp/log)"
    is "lines of the log that are not the core's" $(grep -vc '^corevisor: ' /tmp/log) 0
    # Beyond the end there is nothing, and no error.
    is "the log's end" "$(call hvc c6008002 ffffffffffff | cut -d ' ' -f 1)" 0
"#;

/// PSCI is 1.1 and refuses an entry point in the core; SMCs that nobody has.
const SMC_CALLS: &str = r#"
    answers 10001 smc 84000000
    for number in 0 1 12345678 82000000 c2000000 83000000 b2000000 bf00ff01 84000020 c4000020 8400001f; do
        got=$(call smc $number)
        case ${got%% *} in $none | ffffffff) ;; *) fail "SMC $number: $got" ;; esac
    done
    answers $none smc1 84000000

    echo 0 > /sys/devices/system/cpu/cpu1/online || fail "CPU 1 does not go off"
    invalid=fffffffffffffff7
    gaps 2048 > /tmp/gaps
    while read -r start end; do
        answers $invalid smc c4000003 1 ${start#0x} 0
        answers $invalid smc c4000003 1 $(printf '%x' $((end - 4))) 0
    done < /tmp/gaps
    # Devices, nothing at all, and beyond all addresses.
    for entry in 9000000 f000000 c0000000 ffffffffffff0000; do answers $invalid smc c4000003 1 $entry 0; done
    # No such CPU.
    answers fffffffffffffffe smc c4000003 7 50000000 0
    is "CPUs" $(nproc) 1
    echo 1 > /sys/devices/system/cpu/cpu1/online || fail "CPU 1 does not come back"
    is "CPUs" $(nproc) 2
    # On already.
    answers fffffffffffffffc smc c4000003 1 50000000 0
    if complaints; then fail "the kernel complains"; fi
"#;
