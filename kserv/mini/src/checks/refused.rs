//! Calls with wrong arguments: each gets its named error, and what it is about goes on as before.
#![forbid(unsafe_code)]

use alloc::string::String;

use corevisor_interface::calls::{
    CallError, HostCall, MAX_IMAGES, MAX_PAGES, MAX_RUNS, MAX_VCPUS, MAX_VMS, VM_ORDINARY, VM_PROTECTED,
};
use kserv_model::layout::RAM_BASE;

use super::{Bare, Context, ensure, page};
use crate::arch::entry::{image, try_read};
use crate::calls::{self, bare};
use crate::guest::{Failure, at};
use crate::pages::{self, PAGE};

/// No RAM on any board.
const NOWHERE: u64 = 0x7f_ffff_f000;

/// Each call with each kind of wrong argument.
pub fn calls(_: &Context<'_>) -> Result<String, Failure> {
    use CallError::{InUse, InvalidParameter, NoMemory, NoSuchObject, NotOwner, Occupied, WrongState};
    use HostCall as C;
    let mut ready = Bare::new(VM_PROTECTED, 8)?;
    let mailbox = ready.vcpu(0)?;
    let verified = Bare::ready()?;
    let dry = Bare::new(VM_ORDINARY, 1)?;
    let own = page()?;
    let given = page()?;
    let image_index = at("SetBootInfo", calls::set_boot_info(ready.id, RAM_BASE, 2 * PAGE))?;
    at("RemapImagePages", calls::remap_image_pages(ready.id, image_index, given, 1))?;
    let (p, v, d) = (ready.id, verified.id, dry.id);
    // A mailbox is the host's, but lent for as long as its VM lives.
    let cases: &[(C, [u64; 5], CallError)] = &[
        (C::RegisterVm, [2, 36, own, 0, 0], InvalidParameter),
        (C::RegisterVm, [VM_ORDINARY, 31, own, 0, 0], InvalidParameter),
        (C::RegisterVm, [VM_ORDINARY, 53, own, 0, 0], InvalidParameter),
        (C::RegisterVm, [VM_ORDINARY, 36, own + 1, 0, 0], InvalidParameter),
        (C::RegisterVm, [VM_ORDINARY, 36, NOWHERE, 0, 0], NotOwner),
        (C::RegisterVm, [VM_ORDINARY, 36, given, 0, 0], NotOwner),
        (C::RegisterVm, [VM_ORDINARY, 36, mailbox, 0, 0], InUse),
        (C::RegisterVcpu, [0, 0, own, 0, 0], NoSuchObject),
        (C::RegisterVcpu, [MAX_VMS + 1, 0, own, 0, 0], NoSuchObject),
        (C::RegisterVcpu, [u64::MAX, 0, own, 0, 0], NoSuchObject),
        (C::RegisterVcpu, [p, MAX_VCPUS, own, 0, 0], NoSuchObject),
        (C::RegisterVcpu, [p, 0, own, 0, 0], WrongState),
        (C::RegisterVcpu, [p, 1, own + 8, 0, 0], InvalidParameter),
        (C::RegisterVcpu, [p, 1, given, 0, 0], NotOwner),
        (C::RegisterVcpu, [p, 1, NOWHERE, 0, 0], NotOwner),
        (C::RegisterVcpu, [v, 1, own, 0, 0], WrongState),
        (C::DonatePool, [MAX_VMS + 1, own, 1, 0, 0], NoSuchObject),
        (C::DonatePool, [p, own + 1, 1, 0, 0], InvalidParameter),
        (C::DonatePool, [p, given, 1, 0, 0], NotOwner),
        (C::DonatePool, [p, mailbox, 1, 0, 0], InUse),
        (C::DonatePool, [p, NOWHERE, 1, 0, 0], NotOwner),
        (C::PoolInfo, [0, 0, 0, 0, 0], NoSuchObject),
        (C::SetBootInfo, [v, RAM_BASE, PAGE, 0, 0], WrongState),
        (C::SetBootInfo, [p, RAM_BASE + 1, PAGE, 0, 0], InvalidParameter),
        (C::RemapImagePages, [p, MAX_IMAGES, own, 1, 0], NoSuchObject),
        (C::RemapImagePages, [p, image_index, given, 1, 0], NotOwner),
        (C::RemapImagePages, [p, image_index, own + 1, 1, 0], InvalidParameter),
        (C::RemapImagePages, [p, image_index, own, 0, 0], InvalidParameter),
        (C::RemapImagePages, [p, image_index, mailbox, 1, 0], InUse),
        (C::VerifyVm, [v, 0, 0, 0, 0], WrongState),
        (C::MapMemory, [p, RAM_BASE, own, 1, 0], Occupied),
        (C::MapMemory, [p, RAM_BASE + 1, own, 1, 0], InvalidParameter),
        (C::MapMemory, [p, RAM_BASE, own + 1, 1, 0], InvalidParameter),
        (C::MapMemory, [p, 1 << 60, own, 1, 0], InvalidParameter),
        (C::MapMemory, [p, RAM_BASE + PAGE, given, 1, 0], NotOwner),
        (C::MapMemory, [p, RAM_BASE + PAGE, mailbox, 1, 0], InUse),
        (C::MapMemory, [v, RAM_BASE, own, 1, !1], InvalidParameter),
        (C::MapMemory, [d, RAM_BASE, own, 1, 0], NoMemory),
        (C::MapRuns, [p, RAM_BASE, 1, 0, own], Occupied),
        (C::MapRuns, [p, RAM_BASE + 1, 1, 0, own], InvalidParameter),
        (C::MapRuns, [p, 1 << 60, 1, 0, own], InvalidParameter),
        (C::MapRuns, [p, RAM_BASE + PAGE, 0, 0, own], InvalidParameter),
        (C::MapRuns, [p, RAM_BASE + PAGE, MAX_RUNS as u64 + 1, 0, own], InvalidParameter),
        (C::MapRuns, [p, RAM_BASE + PAGE, 1, 1, own], InvalidParameter),
        (C::MapRuns, [v, RAM_BASE, 1, !1, own], InvalidParameter),
        (C::MapRuns, [p, RAM_BASE + PAGE, 2, 0, given], NotOwner),
        (C::MapRuns, [p, RAM_BASE + PAGE, 2, 0, NOWHERE], NotOwner),
        (C::MapRuns, [p, RAM_BASE + PAGE, 2, 0, mailbox], InUse),
        (C::MapRuns, [d, RAM_BASE, 1, 0, own], NoMemory),
        (C::UnmapMemory, [p, RAM_BASE, 1, 0, 0], WrongState),
        (C::MapIo, [p, RAM_BASE, own, 1, 0], InvalidParameter),
        (C::MapIo, [p, 0x0900_0000, own, 1, 0], NotOwner),
        (C::MapIo, [p, 0x0900_0000, NOWHERE, 1, 0], NotOwner),
        (C::SetCntvoff, [MAX_VMS + 1, 0, 0, 0, 0], NoSuchObject),
        (C::VcpuRun, [p, 0, 0, 0, 0], WrongState),
        (C::VcpuRun, [0, 0, 0, 0, 0], NoSuchObject),
        (C::VcpuRun, [v, 1, 0, 0, 0], NoSuchObject),
        (C::VcpuRun, [v, MAX_VCPUS, 0, 0, 0], NoSuchObject),
        (C::GetRegister, [p, 0, 32, 0, 0], WrongState),
        (C::GetRegister, [v, 0, u64::MAX, 0, 0], InvalidParameter),
        (C::SetRegister, [p, 0, 32, 0, 0], WrongState),
        (C::PowerOffVm, [MAX_VMS, 0, 0, 0, 0], NoSuchObject),
        (C::ReclaimVm, [v, 0, 0, 0, 0], WrongState),
        (C::ReclaimVm, [p, 0, 0, 0, 0], WrongState),
        (C::DestroyVm, [v, 0, 0, 0, 0], WrongState),
        (C::DestroyVm, [0, 0, 0, 0, 0], NoSuchObject),
        (C::VmInfo, [MAX_VMS + 1, 0, 0, 0, 0], NoSuchObject),
        (C::PageInfo, [0, RAM_BASE, 0, 0, 0], NoSuchObject),
    ];
    let mut wrong = 0;
    for (call, arguments, expected) in cases {
        let x = bare(*call, *arguments);
        let got = CallError::from_x0(x[0]).map_or(Ok(x), Err);
        if got != Err(*expected) {
            crate::say!("{call:?} {arguments:x?}: {got:x?}, expected {expected:?}");
            wrong += 1;
        }
    }
    ensure(wrong == 0, "calls got other results")?;
    ensure(try_read(own).is_ok() && try_read(mailbox).is_ok(), "a page of this host is gone")?;
    // This program's own pages are as good as any; the core's are nobody's.
    ensure(try_read(image().start).is_ok(), "this program is gone")?;
    at("DonatePool", calls::donate_pool(p, own, 1))?;
    ensure(calls::pool_info(p).is_ok_and(|(_, all)| all == 9), "the pool counts other pages")?;
    // Tables count too, so that what the others give is not known.
    let taken = ready.end()?;
    verified.end()?;
    dry.end()?;
    ensure(taken >= 1, "the page of an image did not come back")?;
    for pa in [own, given] {
        super::returned(pa)?;
        pages::give(pa, 1);
    }
    ensure(MAX_PAGES == 512, "a block has another size")?;
    Ok(alloc::format!("{} calls refused by name", cases.len()))
}
