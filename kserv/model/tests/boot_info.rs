//! What a VM starts with, found in memory that looks like QEMU's, and named errors for anything else.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

use kserv_model::boot_info::{BootInfo, Image, Unknown};
use kserv_model::fdt;
use kserv_model::gic::GicVersion;
use kserv_model::image::PlaceError;
use kserv_model::random::Random;

const RAM: u64 = 0x4000_0000;
const KERNEL: u64 = 0x4020_0000;
const DTB: u64 = 0x4900_0000;
const INITRD: (u64, u64) = (0x4800_0000, 0x4812_3456);
const IMAGE_SIZE: u64 = 0x21_0000;

/// Pieces of a VM's memory.
struct Memory(Vec<(u64, Vec<u8>)>);

impl Memory {
    fn read(&self, gpa: u64, to: &mut [u8]) -> bool {
        let piece = self.0.iter().find(|(at, piece)| gpa >= *at && gpa + to.len() as u64 <= at + piece.len() as u64);
        let Some((at, piece)) = piece else { return false };
        to.copy_from_slice(&piece[(gpa - at) as usize..][..to.len()]);
        true
    }

    fn infer(&self, pc: u64, x0: u64) -> Result<BootInfo, Unknown> {
        BootInfo::infer(&mut |gpa, to| self.read(gpa, to), pc, x0)
    }
}

fn tree(initrd: Option<(u64, u64)>) -> Vec<u8> {
    let machine = fdt::Machine { vcpus: 2, memory: 0x1000_0000, gic: GicVersion::V2, bootargs: "quiet", initrd };
    fdt::build(&machine)
}

fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 4096];
    kernel[16..24].copy_from_slice(&IMAGE_SIZE.to_le_bytes());
    kernel[56..60].copy_from_slice(b"ARM\x64");
    kernel
}

/// As QEMU starts a kernel: at six instructions that load x0 and jump.
fn stub(dtb: u64, kernel: u64) -> Vec<u8> {
    let code = [0x5800_00c0u32, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0x5800_0084, 0xd61f_0080];
    let words = code.into_iter().flat_map(u32::to_le_bytes);
    words.chain([dtb, kernel].into_iter().flat_map(u64::to_le_bytes)).collect()
}

fn memory(initrd: Option<(u64, u64)>) -> Memory {
    Memory(vec![(RAM, stub(DTB, KERNEL)), (KERNEL, kernel()), (DTB, tree(initrd))])
}

fn expected(initrd: Option<(u64, u64)>) -> BootInfo {
    let mut info = BootInfo { entry: KERNEL, x0: DTB, count: 2, ..BootInfo::default() };
    info.images[0] = Image { gpa: KERNEL, size: IMAGE_SIZE };
    info.images[1] = Image { gpa: DTB, size: tree(initrd).len() as u64 };
    if let Some((start, end)) = initrd {
        (info.images[2], info.count) = (Image { gpa: start, size: end - start }, 3);
    }
    info
}

#[test]
fn a_vm_as_qemu_starts_it_is_found_whole() {
    assert_eq!(memory(Some(INITRD)).infer(RAM, 0), Ok(expected(Some(INITRD))));
    assert_eq!(memory(None).infer(RAM, 0), Ok(expected(None)));
}

#[test]
fn a_vm_that_begins_at_its_kernel_is_found_too() {
    assert_eq!(memory(Some(INITRD)).infer(KERNEL, DTB), Ok(expected(Some(INITRD))));
}

#[test]
fn what_is_wrong_has_a_name() {
    let good = || memory(Some(INITRD));
    assert_eq!(good().infer(0x1000, DTB), Err(Unknown::NoMemory));
    assert_eq!(good().infer(KERNEL, 0), Err(Unknown::NoMemory));
    assert_eq!(good().infer(KERNEL, u64::MAX - 8), Err(Unknown::NoMemory));
    assert_eq!(good().infer(KERNEL, KERNEL), Err(Unknown::NoDeviceTree));
    assert_eq!(good().infer(DTB, DTB), Err(Unknown::Kernel(PlaceError::NoMagic)));
    let change = |piece: usize, at: usize, bytes: &[u8]| {
        let mut memory = good();
        memory.0[piece].1[at..at + bytes.len()].copy_from_slice(bytes);
        memory.infer(RAM, 0)
    };
    assert_eq!(change(1, 0, &[0x1f, 0x8b]), Err(Unknown::Kernel(PlaceError::Gzip)));
    assert_eq!(change(1, 16, &[0; 8]), Err(Unknown::NoSize));
    assert_eq!(change(1, 16, &[0xff; 8]), Err(Unknown::NoSize));
    assert_eq!(change(1, 24, &[1]), Err(Unknown::Kernel(PlaceError::BigEndian)));
    assert_eq!(change(1, 16, &0x1000_0000u64.to_le_bytes()), Err(Unknown::Overlap), "over the initrd");
    // Total size, offset and size of the structure, its first token.
    for (at, bytes) in [(4, [0xff; 4]), (8, [0xff; 4]), (36, [0xff; 4]), (12, [0xff; 4]), (8, [0, 0, 0, 0x3a])] {
        assert_eq!(change(2, at, &bytes), Err(Unknown::BadDeviceTree), "{at}");
    }
    assert_eq!(memory(Some((INITRD.1, INITRD.0))).infer(RAM, 0), Err(Unknown::BadInitrd));
    assert_eq!(memory(Some((INITRD.0 + 8, INITRD.1))).infer(RAM, 0), Err(Unknown::NotAligned));
    assert_eq!(memory(Some((KERNEL, KERNEL + 1))).infer(RAM, 0), Err(Unknown::Overlap));
    let moved = Memory(vec![(KERNEL + 8, kernel()), (DTB, tree(None))]);
    assert_eq!(moved.infer(KERNEL + 8, DTB), Err(Unknown::NotAligned));
}

fn manifest(info: &BootInfo) -> Vec<u8> {
    let mut bytes = b"CVMANIF2".to_vec();
    [info.count, info.entry, info.x0].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    for image in info.images {
        bytes.extend(image.gpa.to_le_bytes().into_iter().chain(image.size.to_le_bytes()).chain([7; 32]));
    }
    bytes.extend([1; 96]);
    bytes
}

#[test]
fn a_manifest_says_the_same_and_a_difference_has_a_name() {
    let found = expected(Some(INITRD));
    // The kernel's file is shorter than the memory that it needs.
    let mut signed = found;
    signed.images[0].size -= 0x3_0123;
    assert_eq!(BootInfo::of_manifest(&manifest(&signed)), Ok(signed));
    assert_eq!(found.explain(&signed), Ok(()));
    let differs = |change: &dyn Fn(&mut BootInfo)| {
        let mut other = signed;
        change(&mut other);
        found.explain(&other)
    };
    assert_eq!(differs(&|info| info.entry += 4), Err(Unknown::OtherEntry));
    assert_eq!(differs(&|info| info.x0 = 0), Err(Unknown::OtherX0));
    assert_eq!(differs(&|info| info.count = 2), Err(Unknown::OtherCount));
    assert_eq!(differs(&|info| info.images[0].size = 2 * IMAGE_SIZE), Err(Unknown::OtherKernel));
    assert_eq!(differs(&|info| info.images[1].size += 0x1000), Err(Unknown::OtherDeviceTree));
    assert_eq!(differs(&|info| info.images[2].gpa += 0x1000), Err(Unknown::OtherInitrd));
}

#[test]
fn what_is_no_manifest_is_refused() {
    let good = manifest(&expected(None));
    assert_eq!(BootInfo::of_manifest(&good[..good.len() - 1]), Err(Unknown::NoManifest));
    assert_eq!(BootInfo::of_manifest(&[]), Err(Unknown::NoManifest));
    for (at, value) in [(0, 0), (8, 0), (8, 6)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(BootInfo::of_manifest(&bad), Err(Unknown::NoManifest));
    }
    let mut old = good.clone();
    old[..8].copy_from_slice(b"CVMANIF1");
    assert_eq!(BootInfo::of_manifest(&old), Err(Unknown::OldManifest));
    let mut bad = good;
    bad[32 + 8..32 + 16].fill(0xff);
    assert_eq!(BootInfo::of_manifest(&bad), Err(Unknown::NotAligned));
}

#[test]
fn damaged_memory_gives_an_answer_or_an_error_and_never_a_panic() {
    let mut rng = Random::new(7);
    let mut found = 0;
    for _ in 0..20_000 {
        let mut memory = memory(Some(INITRD));
        for _ in 0..1 + rng.below(4) {
            let piece = rng.below(3) as usize;
            let most = memory.0[piece].1.len().min(256) as u64;
            let at = rng.below(most) as usize;
            memory.0[piece].1[at] = rng.next() as u8;
        }
        found += u32::from(memory.infer(RAM, 0).is_ok());
    }
    assert!(found > 1000 && found < 19_000, "{found}");
}

#[test]
fn every_error_says_what_it_is_and_ends_for_c() {
    for error in [Unknown::NoMemory, Unknown::Kernel(PlaceError::Zboot), Unknown::OtherInitrd, Unknown::Overlap] {
        let text = error.text();
        assert!(text.ends_with('\0') && text.len() > 10);
    }
}
