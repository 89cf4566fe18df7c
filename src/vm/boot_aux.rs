//! Layer 20, BootAux: the images of a protected VM, from the host's pages to a verdict.
//!
//! | primitive               | does                                                                     | lock               |
//! |-------------------------|--------------------------------------------------------------------------|--------------------|
//! | [`load_image_page`]     | the next page of an image leaves the host and becomes the VM's           | Vm held; S2Page, Npt |
//! | [`read_manifest`]       | copies a manifest out of a page of the host                              | S2Page             |
//! | [`hash_images`]         | some pages more of the images' digests                                   | Vm held; Npt       |
//!
//! The proof checks an image through a window of its own and then maps, for each 2 MiB, the block around its first page: pages that nobody
//! checked (K §8.3 A3). Here a page goes first, alone, to the one place where the VM sees it; what is digested is what the VM's own table
//! shows there, page by page, after it has left the host. So it cannot matter where the host had the pages.
//!
//! Below: BootCore. Above: BootOps. Specification: `spec::vm`. Source: SeKVM layer BootAux; K §2 L20, §4.5, §8.3 A3, A17.
#![forbid(unsafe_code)]

use core::mem;

use sha2::{Digest, Sha512};

use super::authenticate::Manifest;
use super::keys::Digest512;
use super::{Vm, Vms};
use crate::abstract_machine::Machine;
use crate::abstract_machine::addr::{Gfn, PAGE_SIZE, Pfn, PhysRange, VmId};
use crate::interface::CallError;
use crate::memory::memory_ops::{self, Scrub};

/// Pages that one call digests.
pub const HASH_STEP: u64 = 32;
/// Words that are read at a time.
const CHUNK: usize = 32;
const PAGE_WORDS: usize = PAGE_SIZE as usize / 8;

/// The host's page `pfn` becomes the next page of image `image`. What lies behind the image's last byte is zeroed. K: `remap_vm_image`
/// and the mapping of `unmap_and_load_vm_image`.
///
/// # Errors
/// [`CallError::NoSuchObject`] if there is no such image, [`CallError::WrongState`] if all its pages are there;
/// as [`memory_ops::assign_pfn_to_vm`]. Nothing has changed then.
pub fn load_image_page<M: Machine>(
    vms: &Vms<M>,
    id: VmId,
    vm: &mut Vm,
    image: usize,
    pfn: Pfn,
) -> Result<(), CallError> {
    let count = vm.image_count;
    let image = vm.images.get_mut(..count).and_then(|images| images.get_mut(image)).ok_or(CallError::NoSuchObject)?;
    let (page, pages) = (image.loaded, image.pages());
    if page >= pages {
        return Err(CallError::WrongState);
    }
    let gfn = image.gfn.checked_add(page).ok_or(CallError::InvalidParameter)?;
    memory_ops::assign_pfn_to_vm(vms.memory(), id, gfn, pfn, Scrub::Keep)?;

    image.loaded += 1;
    let used = image.size - page * PAGE_SIZE;
    if used < PAGE_SIZE {
        zero_tail(vms.machine(), pfn, used as usize);
    }
    Ok(())
}

/// Zeroes the page from byte `used` on.
fn zero_tail<M: Machine>(machine: &M, pfn: Pfn, used: usize) {
    let (word, bytes) = (used / 8, used % 8);
    let mut first = [0];
    machine.read_page(pfn, word, &mut first);
    machine.write_page(pfn, word, &[first[0] & ((1 << (bytes * 8)) - 1)]);
    (word + 1..PAGE_WORDS).for_each(|word| machine.write_page(pfn, word, &[0]));
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
        for n in 0..Manifest::WORDS {
            let mut word = [0];
            machine.read_page(pfn, n, &mut word);
            manifest.set_word(n, word[0]);
        }
    })
}

/// Digests up to [`HASH_STEP`] pages more of the images and compares each digest that is complete. Whether all is done, and good.
///
/// # Errors
/// [`CallError::NotAuthentic`] if a digest is not the manifest's, or a page is not there.
#[inline(never)]
pub fn hash_images<M: Machine>(vms: &Vms<M>, id: VmId, vm: &mut Vm, manifest: &Manifest) -> Result<bool, CallError> {
    let count = vm.image_count;
    let (Some(check), Some(images)) = (vm.check.as_mut(), vm.images.get(..count)) else { return Ok(false) };
    let mut steps = 0;
    while let Some(image) = images.get(check.image) {
        if check.page == image.pages() {
            let digest: Digest512 = mem::replace(&mut check.hash, Sha512::new()).finalize().into();
            if digest != manifest.digest(check.image) {
                return Err(CallError::NotAuthentic);
            }
            (check.image, check.page) = (check.image + 1, 0);
            continue;
        }
        if steps == HASH_STEP {
            return Ok(false);
        }
        let gfn = image.gfn.checked_add(check.page).ok_or(CallError::NotAuthentic)?;
        hash_page(vms, id, gfn, &mut check.hash)?;
        check.page += 1;
        steps += 1;
    }
    Ok(true)
}

/// Digests what the VM has at `gfn`.
fn hash_page<M: Machine>(vms: &Vms<M>, vm: VmId, gfn: Gfn, hash: &mut Sha512) -> Result<(), CallError> {
    let (pfn, _) = memory_ops::walk_vm(vms.memory(), vm, gfn).ok_or(CallError::NotAuthentic)?;
    let mut words = [0; CHUNK];
    for chunk in 0..PAGE_WORDS / CHUNK {
        vms.machine().read_page(pfn, chunk * CHUNK, &mut words);
        let mut bytes = [0; CHUNK * 8];
        bytes.chunks_exact_mut(8).zip(&words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
        hash.update(bytes);
    }
    Ok(())
}
