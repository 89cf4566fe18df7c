//! SMMUs at boot: whether the core can put all devices behind them, and doing so.
//!
//! All or none: with one SMMU that the core cannot drive, the host would drive it, and devices behind it would reach all memory; so the host keeps them all then,
//! with a warning. Arm IHI 0070 (SMMUv3); its registers are `abstract_machine::cpu::smmu`'s.

use super::boot_error::BootError;
use super::device_tree::{MachineDescription, SmmuVersion};
use super::host_start::Plan;
use super::own_map;
use crate::abstract_machine::addr::{BLOCK_2M, PAGE_SIZE, PhysRange};
use crate::abstract_machine::cpu::{Cpu, maintenance, pool, smmu};
use crate::abstract_machine::shape::Shape;
use crate::locks::Lock;
use crate::memory::mem_region::{MemRegions, RegionKind};
use crate::npt::Level;
use crate::npt::descriptor::CoreAccess;
use crate::spt::Spt;
use crate::spt::mmio_pt_alloc::pages_for;
use crate::spt::mmio_spt_ops::init_spt;

/// What all SMMUs of the machine together can do.
#[derive(Clone, Copy)]
pub struct Taken {
    bits: u32,
    largest: Level,
}

/// Takes all SMMUs of the machine from the host, if there are any and the core can drive them all; their registers are mapped for the core from now on.
///
/// # Errors
/// [`BootError`], if there is no room for the map or for what is left of the device windows.
pub fn take(description: &mut MachineDescription) -> Result<Option<Taken>, BootError> {
    if description.smmus.is_empty() {
        return Ok(None);
    }
    if !description.smmus_serve {
        log::warn!("no device stands behind an SMMU: devices reach all memory");
        return Ok(None);
    }
    let mut taken = Taken { bits: 48, largest: Level::L2 };
    for unit in description.smmus.iter() {
        if unit.version != SmmuVersion::V3 {
            log::warn!("the SMMU at {} is none of version 3: devices reach all memory", unit.range);
            return Ok(None);
        }
        // Whatever the SMMU says of itself: how it is connected only the tree knows (Linux, arm,smmu-v3.yaml).
        if !unit.coherent {
            log::warn!("the SMMU at {} does not see caches, by the device tree: devices reach all memory", unit.range);
            return Ok(None);
        }
        own_map::map(unit.range, CoreAccess::Device)?;
        // SAFETY: the device tree says that an SMMUv3 is there; it was mapped just now, and the host does not run yet.
        match unsafe { smmu::look_at(unit.range) } {
            Err(unfit) => {
                log::warn!("the SMMU at {} is of no use ({unfit:?}): devices reach all memory", unit.range);
                return Ok(None);
            }
            Ok(abilities) => {
                taken.bits = taken.bits.min(abilities.bits);
                taken.largest = if abilities.in_place { taken.largest } else { Level::L3 };
            }
        }
    }
    description.take_smmus()?;
    Ok(Some(taken))
}

/// The table of the SMMUs, of all RAM, in memory of its own.
///
/// # Errors
/// [`BootError::NoRoomFor`].
pub fn build_table(
    taken: Taken,
    description: &MachineDescription,
    regions: &MemRegions,
    host: Shape,
    plan: &mut Plan<'_>,
) -> Result<(PhysRange, Lock<Spt>), BootError> {
    let shape = Shape::new(taken.bits.min(host.ia_bits()));
    let ram = || regions.as_slice().iter().filter(|region| region.kind != RegionKind::Device).map(|bank| bank.range);
    let doorbells = || description.doorbells.iter().map(|doorbell| doorbell.page_cover());
    let size = (pages_for(shape, ram().chain(doorbells())) * PAGE_SIZE).div_ceil(BLOCK_2M) * BLOCK_2M;
    let tables = plan.place("the SMMUs' table", size, BLOCK_2M)?;
    own_map::map(tables, CoreAccess::ReadWrite)?;
    maintenance::zero(tables);
    pool::add_tables(tables);
    Ok((tables, init_spt(&Cpu, shape, taken.largest, tables, ram(), doorbells())?))
}

/// Puts all devices behind the table.
///
/// # Errors
/// [`BootError::OutOfTables`].
pub fn start(taken: Taken, description: &MachineDescription, spt: &Lock<Spt>) -> Result<(), BootError> {
    let (root, shape) = {
        let spt = spt.acquire();
        (spt.root(), spt.shape())
    };
    for unit in description.smmus.iter() {
        // SAFETY: mapped and found fit in `take`; nobody but the core has it since; tables of the core's own stay.
        unsafe { smmu::start(unit.range, root, shape) }.ok_or(BootError::OutOfTables)?;
    }
    let leaves = if taken.largest == Level::L3 { "pages" } else { "blocks and pages" };
    log::info!("{} SMMUs: devices reach what the host may access, by {leaves}", description.smmus.len());
    Ok(())
}
