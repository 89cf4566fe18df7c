//! Every CPU: its data and stacks, how it starts, and PSCI for the host on all of them.
//!
//! A CPU comes to [`secondary_main`] from firmware (CPU_ON, resume) or, on a board with spin tables, once at boot, and
//! then waits inside the core until the host wants it.

use core::fmt;
use core::slice;

use aarch64_cpu::asm::{barrier, sev, wfi};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use spin::Once;

use super::boot_error::BootError;
use super::cpu_memory::{self, STACKS_SIZE};
use super::device_tree::{EnableMethod, MAX_CPUS, MachineDescription, PsciConduit};
use super::host_start::Plan;
use super::own_map::{self, MapError};
use super::psci::{
    After, Bcm2835Pm, Below, BoardMachine, CpuPower, Leave, ProbeError, Psci, PsciOutcome, SetUp, SmcCall, SmcFirmware,
    Start, SystemEnd,
};
use super::{boot, entry};
use crate::abstract_machine::SmcOutcome;
use crate::abstract_machine::addr::{BLOCK_2M, CpuId, Ipa, PAGE_SIZE, Pa, PhysRange, Va};
use crate::abstract_machine::cpu::{self, SmcServer, el2, halt, maintenance, pool};
use crate::abstract_machine::per_cpu::{EMERGENCY_STACK_SIZE, PerCpu, STACK_SIZE};
use crate::npt::descriptor::CoreAccess;

/// log2 of the pages of a CPU's area in the page pool: guard page, stack, emergency stack, from the bottom up.
const AREA_ORDER: u32 = 2;
const _: () = assert!(PAGE_SIZE << AREA_ORDER == STACKS_SIZE);

/// How many seconds a CPU may take out of its spin table: it has nothing to do on the way.
const PATIENCE: u64 = 5;

static PSCI: Once<Server> = Once::new();

struct Server(Psci<BoardMachine, MAX_CPUS>);

/// Why the CPUs cannot be brought up.
#[derive(Clone, Copy, Debug)]
pub enum CpuError {
    /// The boot CPU is not in the device tree.
    BootCpuUnknown(u64),
    /// The page pool is too small for so many CPUs.
    OutOfMemory,
    /// The device tree says that PSCI is called by HVC: another hypervisor would have to be there.
    PsciByHvc,
    /// Firmware has no PSCI that the core can use.
    Firmware(ProbeError),
    /// PSCI has no place for the CPU with this MPIDR, or another one than the core's data have.
    Misnumbered(u64),
    /// Registers or a spin table could not be mapped.
    Map(MapError),
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BootCpuUnknown(mpidr) => {
                write!(f, "/cpus: no enabled node for the CPU that boots (MPIDR {mpidr:#x})")
            }
            Self::OutOfMemory => f.write_str("no memory for the data of all CPUs"),
            Self::PsciByHvc => {
                f.write_str("/psci: method \"hvc\" needs a hypervisor below the core; the board must offer PSCI by SMC")
            }
            Self::Firmware(ProbeError::TooOld(version)) => {
                write!(f, "/psci: firmware answers PSCI_VERSION with {version:#x}; 0.2 or newer by SMC is needed")
            }
            Self::Misnumbered(mpidr) => write!(f, "PSCI cannot number the CPU with MPIDR {mpidr:#x} as the core does"),
            Self::Map(error) => write!(f, "CPU start: {error:?}"),
        }
    }
}

impl From<MapError> for CpuError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Makes the data of all CPUs, the boot CPU first, then in the tree's order: in the page pool, or where there are many of them in memory that `plan` finds.
///
/// # Errors
/// [`BootError`]: no such memory, or it cannot be mapped; [`CpuError`].
pub fn allocate(description: &MachineDescription, plan: &mut Plan<'_>) -> Result<&'static [PerCpu], BootError> {
    let boot = el2::affinity();
    let known = &description.cpus;
    if !known.iter().any(|cpu| cpu.mpidr.raw() == boot) {
        return Err(CpuError::BootCpuUnknown(boot).into());
    }
    let size = cpu_memory::size(known.len());
    let own = if size == 0 { None } else { Some(plan.place("the data of all CPUs", size, BLOCK_2M)?) };
    let array = match own {
        Some(own) => {
            plan.core.cpus = own;
            map_zeroed(cpu_memory::data(own))?
        }
        None => {
            let bytes = (size_of::<PerCpu>() * known.len()) as u64;
            pool::alloc(bytes.div_ceil(PAGE_SIZE).next_power_of_two().ilog2()).ok_or(CpuError::OutOfMemory)?
        }
    };
    let array = array.raw() as *mut PerCpu;
    let others = known.iter().map(|cpu| cpu.mpidr.raw()).filter(|mpidr| *mpidr != boot);
    let mut count = 0;
    for mpidr in core::iter::once(boot).chain(others) {
        let (stack_top, vectors) = match own {
            Some(own) => {
                let area = cpu_memory::area(own, count);
                // The guard page below was never mapped.
                map_zeroed(area.mapped)?;
                (area.stack_top.raw(), area.vectors.raw())
            }
            None => {
                let area = pool::alloc(AREA_ORDER).ok_or(CpuError::OutOfMemory)?;
                own_map::unmap(PhysRange::between(area, Pa::new(area.raw() + PAGE_SIZE)));
                (area.raw() + PAGE_SIZE + STACK_SIZE, 0)
            }
        };
        let data = PerCpu::new(CpuId::new(count as u16), mpidr, stack_top, stack_top + EMERGENCY_STACK_SIZE);
        let data = data.with_vectors(vectors);
        // SAFETY: the run of pages has room for as many as there are CPUs, and nothing refers to it yet.
        unsafe { array.add(count).write(data) };
        count += 1;
    }
    // SAFETY: `count` elements were written; the pages are never given back.
    let cpus = unsafe { slice::from_raw_parts(array.cast_const(), count) };
    cpu::set_all(cpus);
    cpu::set_this(cpus.first());
    Ok(cpus)
}

/// Maps `range`, free RAM that is the core's from now on, and zeroes it: no CPU reads it before its MMU is on. Its first byte.
fn map_zeroed(range: PhysRange) -> Result<Pa, MapError> {
    own_map::map(range, CoreAccess::ReadWrite)?;
    maintenance::zero(range);
    Ok(range.base())
}

/// Starts PSCI for the host on what the board has, and takes the CPUs of spin tables into the core.
///
/// # Errors
/// [`CpuError`].
pub fn start_psci(description: &MachineDescription, cpus: &'static [PerCpu], set_up: SetUp) -> Result<(), CpuError> {
    let pm = description.bcm_power.map(map_power_manager).transpose()?.flatten();
    // SAFETY: `below` is SmcFirmware only if the device tree says that firmware takes PSCI calls by SMC.
    let machine = unsafe { BoardMachine::new(pm) };
    let spin_tables = description.cpus.iter().any(|cpu| matches!(cpu.enable_method, EnableMethod::SpinTable { .. }));
    let below = match description.psci {
        Some(psci) if psci.conduit == PsciConduit::Hvc => return Err(CpuError::PsciByHvc),
        Some(_) => {
            let firmware = SmcFirmware::probe(&machine, entry::secondary_entry_point()).map_err(CpuError::Firmware)?;
            log::debug!("PSCI {}.{} below", firmware.version() >> 16, firmware.version() & 0xffff);
            Below::Smc(firmware)
        }
        None if spin_tables => Below::SpinTable,
        None => {
            log::warn!("/psci is missing and no CPU has a spin table: the host gets one CPU and cannot switch off");
            Below::Nothing
        }
    };
    let psci = Psci::new(machine, below, set_up, el2::affinity());
    if psci.protect_memory() {
        log::debug!("the firmware scrubs memory after a reset");
    }
    for data in cpus.iter().skip(1) {
        let added = if below == Below::SpinTable { psci.await_cpu(data.mpidr) } else { psci.add_cpu(data.mpidr) };
        // By its number PSCI starts a CPU, and by its number a CPU finds its data: one that differs would be another's.
        if added != Ok(data.cpu) {
            return Err(CpuError::Misnumbered(data.mpidr));
        }
    }
    let server = PSCI.call_once(|| Server(psci));
    cpu::set_smc_server(server);
    entry::publish_secondaries(cpus);
    if below == Below::SpinTable {
        release_spin_tables(description)?;
        wait_for_arrivals(&server.0, cpus);
    }
    Ok(())
}

fn map_power_manager(base: Pa) -> Result<Option<Bcm2835Pm>, MapError> {
    own_map::map(PhysRange::between(base, Pa::new(base.raw() + 0x28)), CoreAccess::Device)?;
    // SAFETY: the device tree says that the registers are there, and they stay mapped.
    Ok(unsafe { Bcm2835Pm::new(Va::new(base.raw())) })
}

/// Brings every CPU that waits at a spin table into the core (Linux, booting.rst, "spin-table").
fn release_spin_tables(description: &MachineDescription) -> Result<(), MapError> {
    let boot = el2::affinity();
    for cpu in description.cpus.iter().filter(|cpu| cpu.mpidr.raw() != boot) {
        let EnableMethod::SpinTable { release } = cpu.enable_method else { continue };
        // In one access: the CPU polls while this is written, and half an address would be one, too.
        own_map::write_doubleword(release, entry::secondary_entry_point().raw())?;
    }
    barrier::dsb(barrier::SY);
    sev();
    Ok(())
}

/// Waits for the CPUs of spin tables, and names those that do not come: the host cannot start them. The host does not run before: what a CPU reads on its way is
/// nobody's afterwards ([`device_tree::withhold`](super::device_tree::withhold)), and was not the host's before.
fn wait_for_arrivals(psci: &Psci<BoardMachine, MAX_CPUS>, cpus: &[PerCpu]) {
    let deadline = CNTPCT_EL0.get() + PATIENCE * CNTFRQ_EL0.get();
    for data in cpus.iter().skip(1) {
        let is_absent = || psci.power(data.cpu) == Some(CpuPower::Absent);
        halt::wait_until(deadline, || !is_absent());
        if is_absent() {
            log::warn!(
                "CPU {} (MPIDR {:#x}) does not come out of a spin table: the host cannot start it",
                data.cpu.index(),
                data.mpidr
            );
        }
    }
}

/// CPUs that run the host.
pub fn running() -> usize {
    PSCI.get().map_or(1, |server| server.0.running())
}

/// Another CPU has its stack and its map.
pub extern "C" fn secondary_main(data: &'static PerCpu) -> ! {
    cpu::set_this(Some(data));
    entry::install_vectors();
    boot::ready_for_host();
    halt::check();
    match PSCI.get() {
        Some(server) => go_on(data, server.0.wait_for_start(data.cpu)),
        None => halt::stay(),
    }
}

fn go_on(data: &'static PerCpu, start: Start) -> ! {
    entry::start_host(data, start.entry.raw(), start.context)
}

impl SmcServer for Server {
    fn serve(&self, cpu: &PerCpu, args: [u64; 4], is_host_memory: &dyn Fn(Ipa) -> bool) -> SmcOutcome {
        let [x0, x1, x2, x3] = args;
        match self.0.call(cpu.cpu, SmcCall::new(x0, x1, x2, x3), is_host_memory) {
            PsciOutcome::Return(result) => SmcOutcome::Return([result, x1, x2, x3]),
            PsciOutcome::ReturnAll(results) => SmcOutcome::Return(results),
            PsciOutcome::Standby => {
                barrier::dsb(barrier::SY);
                wfi();
                SmcOutcome::Return([0, x1, x2, x3])
            }
            PsciOutcome::Leave(leave) => {
                let is_end = boot::end_run(&leave);
                let mut after = self.0.leave(cpu.cpu, leave);
                if is_end && matches!(after, After::Return(_)) {
                    // There is no host to go back to.
                    after = self.0.leave(cpu.cpu, Leave::System(SystemEnd::Reset));
                }
                match after {
                    After::Return(result) => SmcOutcome::Return([result, x1, x2, x3]),
                    After::Start(start) => {
                        el2::reset_el1();
                        SmcOutcome::Restart { entry: start.entry, context: start.context }
                    }
                    After::Halt => boot::halted_by_host(),
                }
            }
        }
    }
}
