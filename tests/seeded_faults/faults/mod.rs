//! The faults, from the bottom layer up.
#![forbid(unsafe_code)]

mod direct;
mod host;
mod locks;
mod memory;
mod mmio;
mod npt;
mod seal;
mod spt;
mod vcpu;
mod vm;

/// A change of the sources that breaks what a layer promises.
pub struct Fault {
    /// Where, and what is wrong then.
    pub name: &'static str,
    pub file: &'static str,
    /// Stands in the file exactly once.
    pub from: &'static str,
    pub to: &'static str,
    /// Why no test can notice it, if so.
    pub survives: Option<&'static str>,
}

impl Fault {
    /// The same fault, of which no test can know.
    const fn survives(self, why: &'static str) -> Self {
        Self { survives: Some(why), ..self }
    }
}

const fn fault(name: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Fault {
    Fault { name, file, from, to, survives: None }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    [
        locks::FAULTS,
        npt::FAULTS,
        spt::FAULTS,
        memory::FAULTS,
        vm::FAULTS,
        seal::FAULTS,
        mmio::FAULTS,
        vcpu::FAULTS,
        direct::FAULTS,
        host::FAULTS,
    ]
    .into_iter()
    .flatten()
}
