//! Layer 20, BootAux: the images of a protected VM, from the host's pages to a verdict.
//!
//! | primitive               | does                                                                     | lock               |
//! |-------------------------|--------------------------------------------------------------------------|--------------------|
//! | [`load_image_pages`]    | the next pages of an image leave the host and become the VM's            | Vm held; S2Page, Npt |
//! | [`read_manifest`]       | copies a manifest out of a page of the host                              | S2Page             |
//! | [`hash_images`]         | some pages more of the images' digests                                   | Vm held; Npt       |
//!
//! The proof checks an image through a window of its own and then maps, for each 2 MiB, the block around its first page: pages that nobody
//! checked (K §8.3 A3). Here pages go first, the image's own and no others, to the one place where the VM sees them; what is digested is what the VM's own table
//! shows there, page by page, after it has left the host. So it cannot matter where the host had the pages.
//!
//! Below: BootCore. Above: BootOps. Specification: `spec::vm`. Source: SeKVM layer BootAux; K §2 L20, §4.5, §8.3 A3, A17.
#![forbid(unsafe_code)]

use core::mem;

use super::authenticate::Manifest;
use super::{Vm, Vms};
use crate::abstract_machine::addr::{PAGE_SIZE, Pfn, PhysRange, VmId};
use crate::abstract_machine::sha256::Sha256;
use crate::abstract_machine::{ForeignPage, Machine, PageDigester};
use crate::interface::CallError;
use crate::memory::memory_ops::{self, Scrub};

/// Pages that one call digests: no interrupt comes to the host meanwhile.
const HASH_STEP: u64 = 32;
/// The same on a CPU with instructions for it. What a call needs besides, the manifest and its identity, is little beside them then, too.
const FAST_HASH_STEP: u64 = 4 * HASH_STEP;
const PAGE_WORDS: usize = PAGE_SIZE as usize / 8;

/// The host's `pages` pages from `pfn` on become the next pages of image `image`, as far as it has so many. What lies behind the image's last byte is zeroed.
/// Pages that it took: a whole block of 2 MiB, or up to where one may come. K: `remap_vm_image` and the mapping of `unmap_and_load_vm_image`.
///
/// # Errors
/// [`CallError::NoSuchObject`] if there is no such image, [`CallError::InvalidParameter`] for 0 pages, [`CallError::WrongState`] if all its pages are there;
/// as [`memory_ops::prot_and_map_vm_s2pt`]. Nothing has changed then.
pub fn load_image_pages<M: Machine>(
    vms: &Vms<M>,
    id: VmId,
    vm: &mut Vm,
    image: usize,
    pfn: Pfn,
    pages: u64,
) -> Result<u64, CallError> {
    let count = vm.image_count;
    let image = vm.images.get_mut(..count).and_then(|images| images.get_mut(image)).ok_or(CallError::NoSuchObject)?;
    let missing = image.pages().saturating_sub(image.loaded);
    match (pages, missing) {
        (0, _) => return Err(CallError::InvalidParameter),
        (_, 0) => return Err(CallError::WrongState),
        _ => {}
    }
    let gfn = image.gfn.checked_add(image.loaded).ok_or(CallError::InvalidParameter)?;
    let taken = memory_ops::prot_and_map_vm_s2pt(vms.memory(), id, gfn, pfn, pages.min(missing), Scrub::Keep)?;

    image.loaded += taken;
    let used = image.size % PAGE_SIZE;
    if taken == missing
        && used != 0
        && let Some(last) = pfn.checked_add(taken - 1)
    {
        zero_tail(vms.machine(), last, used as usize);
    }
    Ok(taken)
}

/// Zeroes the page from byte `used` on.
fn zero_tail<M: Machine>(machine: &M, pfn: Pfn, used: usize) {
    let (word, bytes) = (used / 8, used % 8);
    let page = machine.open_page(pfn);
    page.write(word, page.read(word) & ((1 << (bytes * 8)) - 1));
    (word + 1..PAGE_WORDS).for_each(|word| page.write(word, 0));
    drop(page);
    if let Some(range) = PhysRange::new(pfn.addr(), PAGE_SIZE) {
        machine.sync_page_to_poc(range);
    }
}

/// Copies the manifest that stands at the beginning of the host's page `pfn`: each word is read once (K §8.3 A17).
///
/// # Errors
/// As [`memory_ops::hold_mailbox`]: the page must be the host's own.
pub fn read_manifest<M: Machine>(vms: &Vms<M>, pfn: Pfn, manifest: &mut Manifest) -> Result<(), CallError> {
    vms.with_host_page(pfn, |machine| {
        let page = machine.open_page(pfn);
        (0..Manifest::WORDS).for_each(|n| manifest.set_word(n, page.read(n)));
    })
}

/// Digests some pages more of the images and compares each digest that is complete. Whether all is done, and good.
///
/// # Errors
/// [`CallError::NotAuthentic`] if a digest is not the manifest's, or a page is not there.
#[inline(never)]
pub fn hash_images<M: Machine>(vms: &Vms<M>, id: VmId, vm: &mut Vm, manifest: &Manifest) -> Result<bool, CallError> {
    let count = vm.image_count;
    let (Some(check), Some(images)) = (vm.check.as_mut(), vm.images.get(..count)) else { return Ok(false) };
    let mut digester = vms.machine().digester();
    let mut left = if digester.is_fast() { FAST_HASH_STEP } else { HASH_STEP };
    while let Some(image) = images.get(check.image) {
        if check.page == image.pages() {
            let digest = mem::replace(&mut check.digest, Sha256::NEW).finish();
            if digest != manifest.digest(check.image) {
                return Err(CallError::NotAuthentic);
            }
            (check.image, check.page) = (check.image + 1, 0);
            continue;
        }
        if left == 0 {
            return Ok(false);
        }
        let gfn = image.gfn.checked_add(check.page).ok_or(CallError::NotAuthentic)?;
        let (pfn, _) = memory_ops::walk_vm(vms.memory(), id, gfn).ok_or(CallError::NotAuthentic)?;
        digester.add(&mut check.digest, pfn);
        check.page += 1;
        left -= 1;
    }
    Ok(true)
}
