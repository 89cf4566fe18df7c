//! The driver's own life, and what `tests/host-programs/kvm-probe` finds.

use super::{Host, Whose, driver, finish, told};
use crate::{
    bed::{Bed, Checks, Failure},
    made,
    runner::Case,
};
use corevisor_tool::{outcome::Finished, run::Boot};

pub fn cases() -> Vec<Case> {
    use Whose::*;
    let mut cases = vec![
        Case::new("kvm", "the driver says what it found, and does not load without the core", loads),
        told(driver(), "200 VMs and 50 killed VMMs leave nothing behind", lives).only_in_full_if(true),
        told(driver(), "60 rounds of random calls leave the host well", fuzzed).only_in_full_if(true),
    ];
    let hosts = [driver(), Host::new(Driver, 3), Host::new(Own, 2), Host::new(Own, 3)];
    for host in hosts {
        let default = host.whose == Driver && host.gic == 2;
        cases.push(told(host, "the API answers the probe as it should", answers).only_in_full_if(!default));
        cases.push(told(host, "the probe's guests run as they should", runs).only_in_full_if(!default));
    }
    cases
}

fn answers(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "api").map(|_| ())
}

fn runs(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "run").map(|_| ())
}

fn loads(bed: &Bed) -> Result<(), Failure> {
    let driver = driver();
    let script = "kvm_up\ndmesg | grep corevisor_kvm\nrmmod corevisor_kvm || fail 'it does not go'\n[ ! -e /dev/kvm ] || fail 'it left /dev/kvm'";
    finish(driver.run(bed, "")?, script)?.says("GICv2 with 4 list registers")?;
    let module = std::fs::read(made::driver(bed, driver.kernel)?)?;
    let script = "insmod /lib/driver.ko && fail 'it loads'\n[ ! -e /dev/kvm ] || fail 'there is a /dev/kvm'";
    finish(bed.run(driver.machine()).boot(Boot::NoCore).file("/lib/driver.ko", module), script).map(|_| ())
}

fn probe(bed: &Bed, host: &Host, what: &str) -> Result<Finished, Failure> {
    let run = host.run(bed, "")?.file("/bin/kvm-probe", made::kvm_probe(bed)?);
    let done =
        finish(run, &format!("driver_up\ntimeout 200 kvm-probe {what} || fail 'the probe ends with status' $?"))?;
    done.check(done.console.lines().any(|line| line.ends_with("are not so")), "the probe came to no end")?;
    done.says_times("\nnot ok", 0)?;
    Ok(done)
}

fn lives(bed: &Bed, host: &Host) -> Result<(), Failure> {
    let done = probe(bed, host, "life 200")?;
    done.says("200 times a VM that lives")?;
    done.says("50 times a VMM that is killed")
}

fn fuzzed(bed: &Bed, host: &Host) -> Result<(), Failure> {
    probe(bed, host, "fuzz 1 60")?.says("a VM lives afterwards")
}
