//! What a protected VM starts with is what was signed, whatever the host does: K §4.5, §8.2 D2, D12, §8.3 A3, A17.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

mod common;

use common::vms::{Host, MANIFEST, PAGE, TestImage, TestManifest, image, key};
use corevisor::abstract_machine::addr::{VcpuId, VmId};
use corevisor::interface::boot::{MANIFEST_MAGIC, Manifest, OLD_MANIFEST_MAGIC};
use corevisor::interface::calls::{MAX_IMAGES, VM_ORDINARY, VM_PROTECTED};
use corevisor::interface::{CallError, HostCall};
use corevisor::vm::boot_ops::{self};
use corevisor::vm::{Start, VmState};

const KERNEL: u64 = 0x4020_0000;
const DTB: u64 = 0x4000_0000;

fn images() -> Vec<TestImage> {
    vec![image(KERNEL, 40 * PAGE as usize + 123), image(DTB, 777), image(0x4040_0000, 2 * PAGE as usize)]
}

fn manifest() -> TestManifest {
    TestManifest::of(&images(), KERNEL + 64, DTB)
}

/// A protected VM with one vCPU and these images.
fn loaded(images: &[TestImage]) -> (Host, u64) {
    let mut host = Host::default();
    let vm = host.vm(VM_PROTECTED, 20);
    host.vcpu(vm, 0);
    host.load(vm, images);
    (host, vm)
}

fn verdict(images: &[TestImage], manifest: &[u8]) -> Result<(), CallError> {
    let (host, vm) = loaded(images);
    let verdict = host.verify(vm, manifest);
    let state = if verdict.is_ok() { VmState::Verified } else { VmState::Ready };
    assert_eq!(host.state(vm), state as u64);
    verdict
}

#[test]
fn a_vm_whose_images_are_what_was_signed_starts_where_the_manifest_says() {
    let (host, vm) = loaded(&images());
    assert_eq!(host.verify(vm, &manifest().sign(&key(1))), Ok(()));
    let active = boot_ops::set_vcpu_active(host.world.core.vms(), VmId::new(vm as u16), VcpuId::new(0)).unwrap();
    assert_eq!(active.start, Start::Manifest { pc: KERNEL + 64, x0: DTB });
}

#[test]
fn the_check_takes_steps_and_says_so() {
    let (host, vm) = loaded(&images());
    host.write(MANIFEST, &manifest().sign(&key(1)));
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::Again));
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Ok(()));
}

#[test]
fn a_manifest_of_another_layout_is_the_interfaces() {
    assert_eq!(manifest().sign(&key(1)).len(), size_of::<Manifest>());
    assert_eq!(manifest().signed().len(), Manifest::SIGNED_SIZE);
    assert_eq!(MANIFEST_MAGIC.to_le_bytes(), *b"CVMANIF2");
}

#[test]
fn no_bit_of_a_manifest_may_be_another_one() {
    let good = manifest().sign(&key(1));
    let (host, vm) = loaded(&images());
    // Every byte of the fields in use, and some of the rest.
    let bytes = (0..good.len()).filter(|n| *n < 32 + 3 * 48 || n % 7 == 0 || *n >= 32 + 5 * 48);
    for byte in bytes {
        let mut bad = good.clone();
        bad[byte] ^= 1 << (byte % 8);
        assert_eq!(host.verify(vm, &bad), Err(CallError::NotAuthentic), "byte {byte}");
    }
    assert_eq!(host.verify(vm, &good), Ok(()), "what was refused has not changed anything");
}

#[test]
fn a_signature_that_is_cut_off_is_none() {
    let good = manifest().sign(&key(1));
    for cut in [1, 32, 63, 64, 65, 300] {
        assert_eq!(verdict(&images(), &good[..good.len() - cut]), Err(CallError::NotAuthentic), "{cut} bytes less");
    }
}

#[test]
fn each_field_counts_even_if_it_is_signed() {
    let wrong = |change: &dyn Fn(&mut TestManifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        verdict(&images(), &manifest.sign(&key(1)))
    };
    let no = Err(CallError::NotAuthentic);
    assert_eq!(wrong(&|_| ()), Ok(()));
    assert_eq!(wrong(&|m| m.magic += 1), no);
    assert_eq!(wrong(&|m| m.count = 2), no);
    assert_eq!(wrong(&|m| m.count = 4), no);
    assert_eq!(wrong(&|m| m.count = u64::MAX), no);
    assert_eq!(wrong(&|m| m.images[1].0 += PAGE), no);
    assert_eq!(wrong(&|m| m.images[1].1 += 1), no);
    assert_eq!(wrong(&|m| m.images[1].1 -= 1), no);
    assert_eq!(wrong(&|m| m.images[2].2[31] ^= 0x80), no);
    assert_eq!(wrong(&|m| m.images.swap(0, 1)), no);
    assert_eq!(wrong(&|m| m.images.push((0, 0, [1; 32]))), no);
    assert_eq!(wrong(&|m| m.entry = KERNEL - 4), no, "before an image");
    assert_eq!(wrong(&|m| m.entry = KERNEL + 40 * PAGE + 124), no, "behind an image's last byte, in its last page");
    assert_eq!(wrong(&|m| m.entry = KERNEL + 66), no, "no instruction starts there");
    assert_eq!(wrong(&|m| m.entry = u64::MAX - 3), no);
    assert_eq!(wrong(&|m| m.entry = KERNEL + 40 * PAGE + 120), Ok(()));
}

#[test]
fn d2_only_keys_that_the_machines_owner_trusts_count() {
    assert_eq!(verdict(&images(), &manifest().sign(&key(2))), Err(CallError::NotAuthentic), "signed by another");
    let stranger = TestManifest { key: *key(2).pk, ..manifest() };
    assert_eq!(verdict(&images(), &stranger.sign(&key(2))), Err(CallError::NotAuthentic), "a stranger's, all right");
    // A key of small order, with which everything would be signed.
    let weak = TestManifest { key: [0; 32], ..manifest() };
    assert_eq!(verdict(&images(), &weak.sign(&key(1))), Err(CallError::NotAuthentic));
}

#[test]
fn d2_without_a_key_nothing_is_authentic() {
    if option_env!("COREVISOR_PUBLIC_KEY").is_some() {
        return;
    }
    let mut host = Host::default();
    host.world = corevisor::spec::world::World::new(&common::vms::layout());
    let vm = host.vm(VM_PROTECTED, 20);
    host.load(vm, &images());
    assert_eq!(host.verify(vm, &manifest().sign(&key(1))), Err(CallError::NotAuthentic));
}

#[test]
fn every_byte_of_every_page_counts() {
    for (n, at) in [(0, 0), (0, 4095), (0, 17 * 4096 + 5), (0, 40 * 4096 + 122), (1, 0), (1, 776), (2, 8191)] {
        let mut changed = images();
        changed[n].bytes[at] ^= 0x10;
        assert_eq!(verdict(&changed, &manifest().sign(&key(1))), Err(CallError::NotAuthentic), "image {n}, byte {at}");
    }
}

#[test]
fn pages_of_an_image_in_another_order_are_another_image() {
    let mut changed = images();
    let (first, rest) = changed[0].bytes.split_at_mut(4096);
    first.swap_with_slice(&mut rest[..4096]);
    assert_eq!(verdict(&changed, &manifest().sign(&key(1))), Err(CallError::NotAuthentic));
}

#[test]
fn images_in_another_order_or_place_are_refused() {
    let good = manifest().sign(&key(1));
    let mut other = images();
    other.swap(0, 2);
    assert_eq!(verdict(&other, &good), Err(CallError::NotAuthentic));
    let mut other = images();
    other[1].gpa += PAGE;
    assert_eq!(verdict(&other, &good), Err(CallError::NotAuthentic));
    let more = [images(), vec![image(0x4050_0000, 10)]].concat();
    assert_eq!(verdict(&more, &good), Err(CallError::NotAuthentic));
    assert_eq!(verdict(&images()[..2], &good), Err(CallError::NotAuthentic));
}

#[test]
fn a3_pages_that_the_host_scattered_are_checked_and_mapped_one_by_one() {
    let mut host = Host::default();
    let vm = host.vm(VM_PROTECTED, 20);
    let image = image(KERNEL, 5 * PAGE as usize);
    host.call(HostCall::SetBootInfo, &[vm, image.gpa, image.bytes.len() as u64]).unwrap();
    for page in image.bytes.chunks(PAGE as usize) {
        // Each stands among pages with something else, which never become the VM's.
        host.hold(&[0x66; 3 * PAGE as usize]);
        let pa = host.hold(page);
        host.call(HostCall::RemapImagePages, &[vm, 0, pa, 1]).unwrap();
    }
    let manifest = TestManifest::of(&[image], KERNEL, 0);
    assert_eq!(host.verify(vm, &manifest.sign(&key(1))), Ok(()));
    assert_eq!(host.call(HostCall::VmInfo, &[vm]).unwrap()[2], 5, "pages of the VM");
}

#[test]
fn an_image_takes_blocks_and_pages_at_once_and_none_behind_its_end() {
    const BLOCK: u64 = 512 * PAGE;
    let mut host = Host::default();
    let vm = host.vm(VM_PROTECTED, 20);
    let image = image(KERNEL, BLOCK as usize + 5000);
    host.call(HostCall::SetBootInfo, &[vm, image.gpa, image.bytes.len() as u64]).unwrap();
    host.next = host.next.next_multiple_of(BLOCK);
    let base = host.hold(&image.bytes);
    let give = |host: &Host, at: u64, pages| {
        host.call(HostCall::RemapImagePages, &[vm, 0, base + at, pages]).map(|answer| answer[0])
    };
    assert_eq!(give(&host, 0, 0), Err(CallError::InvalidParameter));
    assert_eq!(give(&host, 0, 600), Ok(512), "a block");
    assert_eq!(give(&host, BLOCK, 600), Ok(2), "what is left of the image");
    assert_eq!(give(&host, BLOCK + 2 * PAGE, 1), Err(CallError::WrongState));
    assert_eq!(host.call(HostCall::VmInfo, &[vm]).unwrap()[2], 514, "pages of the VM");
    let manifest = TestManifest::of(&[image], KERNEL, 0);
    assert_eq!(host.verify(vm, &manifest.sign(&key(1))), Ok(()));
}

#[test]
fn what_lies_behind_an_images_end_is_zeroes_and_not_the_hosts_choice() {
    for size in [1, 7, 8, 9, 4088, 4095, 4096, 4097] {
        let images = [image(KERNEL, size)];
        // `hold` fills the rest of the last page with 0xa5.
        assert_eq!(verdict(&images, &TestManifest::of(&images, KERNEL, 0).sign(&key(1))), Ok(()), "{size} bytes");
    }
}

#[test]
fn a21_the_zeroes_behind_an_images_end_are_clean_in_memory() {
    let (mut host, vm) = loaded(&[]);
    let image = image(KERNEL, 5000);
    let base = host.next;
    host.load(vm, &[image]);
    // When it became the VM's, and again after the core wrote to it.
    assert_eq!((host.cleaned(base), host.cleaned(base + PAGE)), (1, 2));
}

#[test]
fn a17_a_manifest_that_changes_between_two_steps_starts_the_check_anew() {
    let (host, vm) = loaded(&images());
    let good = manifest().sign(&key(1));
    // The host has two manifests with good signatures, only one of which names this content.
    let mut other = manifest();
    other.images[0].2 = [7; 32];
    let other = other.sign(&key(1));
    host.write(MANIFEST, &good);
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::Again));
    host.write(MANIFEST, &other);
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::Again), "from the first page on");
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::NotAuthentic));
    // A signature that goes bad later was good when it counted, but a changed manifest is not signed.
    let mut forged = good.clone();
    forged[16] ^= 4;
    host.write(MANIFEST, &good);
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::Again));
    host.write(MANIFEST, &forged);
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::NotAuthentic));
}

#[test]
fn a17_a_manifest_that_changes_as_soon_as_it_was_read_is_what_was_read() {
    let good = manifest().sign(&key(1));
    let mut forged = good.clone();
    forged[16] ^= 4;
    let life = |bytes: &[u8], race: bool| {
        let (host, vm) = loaded(&images());
        let verdicts = [(); 3].map(|()| {
            host.write(MANIFEST, bytes);
            host.raced(race, &[MANIFEST], || host.done(HostCall::VerifyVm, &[vm, MANIFEST]))
        });
        let vms = host.world.core.vms();
        let taken = boot_ops::set_vcpu_active(vms, VmId::new(vm as u16), VcpuId::new(0));
        (verdicts, taken.map(|active| active.start))
    };
    let verified = [Err(CallError::Again), Ok(()), Err(CallError::WrongState)];
    assert_eq!(life(&good, true), (verified, Ok(Start::Manifest { pc: KERNEL + 64, x0: DTB })));
    assert_eq!(life(&good, true), life(&good, false));
    assert_eq!(life(&forged, true), life(&forged, false));
}

#[test]
fn an_image_that_is_added_during_the_check_makes_it_void() {
    let (host, vm) = loaded(&images());
    host.write(MANIFEST, &manifest().sign(&key(1)));
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::Again));
    host.call(HostCall::SetBootInfo, &[vm, 0x4100_0000, 1]).unwrap();
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::WrongState), "a page is missing");
}

#[test]
fn a_vm_without_images_or_with_a_page_missing_is_not_checked() {
    let (host, vm) = loaded(&[]);
    assert_eq!(host.verify(vm, &manifest().sign(&key(1))), Err(CallError::WrongState));
    let (host, vm) = loaded(&images());
    host.call(HostCall::SetBootInfo, &[vm, 0x4100_0000, 1]).unwrap();
    assert_eq!(host.verify(vm, &manifest().sign(&key(1))), Err(CallError::WrongState));
}

#[test]
fn d12_an_image_too_many_is_an_error_and_not_an_index() {
    let (host, vm) = loaded(&[]);
    for n in 0..MAX_IMAGES {
        assert_eq!(host.call(HostCall::SetBootInfo, &[vm, KERNEL + n * PAGE, 4096]), Ok([0, n, 0, 0]));
    }
    assert_eq!(host.call(HostCall::SetBootInfo, &[vm, 0x5000_0000, 1]), Err(CallError::NoSpace));
    assert_eq!(host.call(HostCall::RemapImagePages, &[vm, MAX_IMAGES, 0x4200_0000, 1]), Err(CallError::NoSuchObject));
    assert_eq!(host.call(HostCall::RemapImagePages, &[vm, u64::MAX, 0x4200_0000, 1]), Err(CallError::NoSuchObject));
}

#[test]
fn an_image_lies_within_the_vms_addresses_and_over_no_other() {
    let (host, vm) = loaded(&[]);
    let set = |gpa, size| host.call(HostCall::SetBootInfo, &[vm, gpa, size]).map(|answer| answer[1]);
    let no = Err(CallError::InvalidParameter);
    for (gpa, size) in [
        (KERNEL, 0),
        (KERNEL + 1, 1),
        (1 << 40, 1),
        ((1 << 40) - PAGE, PAGE + 1),
        (PAGE, u64::MAX),
        (0u64.wrapping_sub(PAGE), 2 * PAGE),
        (0u64.wrapping_sub(PAGE), PAGE),
    ] {
        assert_eq!(set(gpa, size), no, "{gpa:#x}, {size:#x}");
    }
    assert_eq!(set(KERNEL, 3 * PAGE), Ok(0));
    assert_eq!((set(KERNEL + 2 * PAGE, 1), set(KERNEL - PAGE, PAGE + 1), set(KERNEL + PAGE, 1)), (no, no, no));
    assert_eq!((set(KERNEL + 3 * PAGE, 1), set(KERNEL - PAGE, PAGE)), (Ok(1), Ok(2)));
}

#[test]
fn a_manifest_must_be_the_hosts_own_page() {
    let (host, vm) = loaded(&images());
    for (pa, error) in [
        (0, CallError::InvalidParameter),
        (MANIFEST + 8, CallError::InvalidParameter),
        (0x4000_1000, CallError::NotOwner),
        (0x0800_0000, CallError::NotOwner),
        (1 << 50, CallError::NotOwner),
    ] {
        assert_eq!(host.done(HostCall::VerifyVm, &[vm, pa]), Err(error), "{pa:#x}");
    }
}

#[test]
fn an_ordinary_vm_has_no_images_and_no_manifest() {
    let mut host = Host::default();
    let vm = host.vm(VM_ORDINARY, 20);
    assert_eq!(host.call(HostCall::SetBootInfo, &[vm, KERNEL, 1]), Err(CallError::WrongState));
    assert_eq!(host.done(HostCall::VerifyVm, &[vm, MANIFEST]), Err(CallError::InvalidParameter));
    assert_eq!(host.done(HostCall::VerifyVm, &[vm]), Ok(()));
}

#[test]
fn images_of_any_length_are_what_they_are_signed_as_and_no_bit_less() {
    const TESTS: u64 = 12;
    let seeds = corevisor_evidence::seeds(TESTS);
    for seed in &seeds {
        let mut rng = corevisor_evidence::Rng::new(*seed);
        let mut images =
            vec![image(KERNEL, 1 + rng.below(70 * PAGE) as usize), image(DTB, 1 + rng.below(3 * PAGE) as usize)];
        let good = TestManifest::of(&images, KERNEL, DTB).sign(&key(1));
        assert_eq!(verdict(&images, &good), Ok(()), "seed {seed}");
        let changed = rng.below(2) as usize;
        let bytes = &mut images[changed].bytes;
        let bit = rng.below(8 * bytes.len() as u64) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(verdict(&images, &good), Err(CallError::NotAuthentic), "seed {seed}, image {changed}, bit {bit}");
    }
    corevisor_evidence::tell("digests of images", &[("images", 4 * seeds.len() as u64), ("first seed", seeds[0])]);
}

#[test]
fn a_manifest_of_the_version_before_is_not_authentic_whoever_signed_it() {
    let old = TestManifest { magic: OLD_MANIFEST_MAGIC, ..manifest() };
    assert_eq!(verdict(&images(), &old.sign(&key(1))), Err(CallError::NotAuthentic));
}
