//! A host that builds VMs by its calls, and manifests made by hand: nothing here is the tool's, which has tests of its own.

use corevisor::abstract_machine::addr::{Pa, Pfn, PhysRange};
use corevisor::abstract_machine::{Machine, VgicInfo};
use corevisor::interface::boot::MANIFEST_MAGIC;
use corevisor::interface::calls::ARGUMENTS;
use corevisor::interface::{CallError, HostCall};
use corevisor::npt::Level;
use corevisor::spec::vm_world::GICV;
use corevisor::spec::world::{Layout, World};
use corevisor::vm::host_calls::vm_call;
use ed25519_compact::{KeyPair, Seed};
use sha2::{Digest, Sha256};

pub const PAGE: u64 = 4096;
/// Where the host has pages to give.
pub const FREE: u64 = 0x4100_0000;
/// The host's page for manifests.
pub const MANIFEST: u64 = 0x40f0_0000;

pub fn layout() -> Layout {
    Layout {
        regions: vec![(0x0800_0000, 0x10_0000, false), (0x4000_0000, 0x400_0000, true)],
        pool: 0x4000_1000,
        pool_pages: 200,
        ia_bits: 40,
        cpus: 4,
        smmu: Some(Level::L2),
    }
}

pub fn key(n: u8) -> KeyPair {
    KeyPair::from_seed(Seed::new([n; 32]))
}

/// x1 and on of a call.
pub fn arguments(x: &[u64]) -> [u64; ARGUMENTS] {
    let mut all = [0; ARGUMENTS];
    all[..x.len()].copy_from_slice(x);
    all
}

/// A machine whose owner trusts key 1, and its host.
pub struct Host {
    pub world: World,
    pub next: u64,
}

impl Default for Host {
    fn default() -> Self {
        let world = World::new(&layout());
        world.core.vms().set_keys([*key(1).pk].into_iter());
        world.sim().set_vgic(VgicInfo { version: 2, list_registers: 4, gicv: PhysRange::new(GICV, 2 * PAGE) });
        Self { world, next: FREE }
    }
}

impl Drop for Host {
    /// Whatever a test is about, the machine was treated well.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let violations = self.world.sim().violations_at_rest();
            assert!(violations.is_empty(), "{violations:?}");
        }
    }
}

impl Host {
    pub fn call(&self, call: HostCall, x: &[u64]) -> Result<[u64; 4], CallError> {
        vm_call(self.world.core.vms(), call, &arguments(x))
    }

    /// A call that returns nothing.
    pub fn done(&self, call: HostCall, x: &[u64]) -> Result<(), CallError> {
        self.call(call, x).map(|answer| assert_eq!(answer, [0; 4]))
    }

    /// `pages` fresh pages of the host.
    pub fn pages(&mut self, pages: u64) -> u64 {
        self.next += pages * PAGE;
        self.next - pages * PAGE
    }

    /// Fresh pages that hold `bytes`.
    pub fn hold(&mut self, bytes: &[u8]) -> u64 {
        let base = self.pages((bytes.len() as u64).div_ceil(PAGE));
        self.write(base, bytes);
        base
    }

    pub fn write(&self, base: u64, bytes: &[u8]) {
        for (n, page) in bytes.chunks(PAGE as usize).enumerate() {
            let mut padded = [0xa5; PAGE as usize];
            padded[..page.len()].copy_from_slice(page);
            let words: Vec<u64> = padded.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
            self.world.sim().write_page(Pfn::containing(Pa::new(base + n as u64 * PAGE)), 0, &words);
        }
    }

    /// `act`, while these pages of the host change as soon as they were read, or do not.
    pub fn raced<R>(&self, race: bool, pages: &[u64], act: impl FnOnce() -> R) -> R {
        let pages: Vec<_> = pages.iter().map(|page| Pfn::containing(Pa::new(*page))).collect();
        self.world.sim().set_race(if race { &pages[..] } else { &[] });
        let result = act();
        self.world.sim().set_race(&[]);
        result
    }

    pub fn read(&self, base: u64) -> Vec<u8> {
        let mut words = [0; 512];
        self.world.sim().read_page(Pfn::containing(Pa::new(base)), 0, &mut words);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A VM of 40 bits with a pool of `pool` pages.
    pub fn vm(&mut self, kind: u64, pool: u64) -> u64 {
        let root = self.next.next_multiple_of(2 * PAGE);
        self.next = root + 2 * PAGE;
        let id = self.call(HostCall::RegisterVm, &[kind, 40, root]).unwrap()[1];
        let pages = self.pages(pool);
        assert_eq!(self.call(HostCall::DonatePool, &[id, pages, pool]).unwrap()[0], pool);
        id
    }

    pub fn vcpu(&mut self, vm: u64, vcpu: u64) {
        let mailbox = self.pages(1);
        self.done(HostCall::RegisterVcpu, &[vm, vcpu, mailbox]).unwrap();
    }

    /// The images are the VM's, page by page, each from wherever `order` says that its page comes from.
    pub fn load(&mut self, vm: u64, images: &[TestImage]) {
        for image in images {
            let index = self.call(HostCall::SetBootInfo, &[vm, image.gpa, image.bytes.len() as u64]).unwrap()[1];
            let base = self.hold(&image.bytes);
            for page in 0..(image.bytes.len() as u64).div_ceil(PAGE) {
                self.call(HostCall::RemapImagePages, &[vm, index, base + page * PAGE, 1]).unwrap();
            }
        }
    }

    /// VerifyVm until it is decided.
    pub fn verify(&self, vm: u64, manifest: &[u8]) -> Result<(), CallError> {
        self.write(MANIFEST, manifest);
        for _ in 0..1000 {
            match self.done(HostCall::VerifyVm, &[vm, MANIFEST]) {
                Err(CallError::Again) => {}
                decided => return decided,
            }
        }
        panic!("VerifyVm never ends")
    }

    /// Powers off, reclaims, destroys.
    pub fn destroy(&self, vm: u64) {
        self.done(HostCall::PowerOffVm, &[vm]).unwrap();
        while self.call(HostCall::ReclaimVm, &[vm]).unwrap()[0] != 0 {}
        for _ in 0..1000 {
            match self.done(HostCall::DestroyVm, &[vm]) {
                Err(CallError::Again) => {}
                decided => return decided.unwrap(),
            }
        }
        panic!("DestroyVm never ends")
    }

    /// How often the page at `base` was cleaned in memory.
    pub fn cleaned(&self, base: u64) -> usize {
        self.world.sim().synced().iter().filter(|range| range.contains(Pa::new(base))).count()
    }

    pub fn state(&self, vm: u64) -> u64 {
        self.call(HostCall::VmInfo, &[vm]).unwrap()[1]
    }
}

#[derive(Clone, Debug)]
pub struct TestImage {
    pub gpa: u64,
    pub bytes: Vec<u8>,
}

/// `bytes` bytes of no pattern at `gpa`.
pub fn image(gpa: u64, bytes: usize) -> TestImage {
    let mut rng = corevisor_evidence::Rng::new(gpa ^ bytes as u64);
    TestImage { gpa, bytes: (0..bytes).map(|_| rng.next() as u8).collect() }
}

/// A manifest, field by field as `interface::boot` says.
#[derive(Clone, Debug)]
pub struct TestManifest {
    pub magic: u64,
    pub count: u64,
    pub entry: u64,
    pub x0: u64,
    /// Address, size, digest.
    pub images: Vec<(u64, u64, [u8; 32])>,
    pub key: [u8; 32],
}

impl TestManifest {
    pub fn of(images: &[TestImage], entry: u64, x0: u64) -> Self {
        let entries = images.iter().map(|image| {
            let mut padded = image.bytes.clone();
            padded.resize(image.bytes.len().next_multiple_of(PAGE as usize), 0);
            (image.gpa, image.bytes.len() as u64, Sha256::digest(&padded).into())
        });
        let images: Vec<_> = entries.collect();
        Self { magic: MANIFEST_MAGIC, count: images.len() as u64, entry, x0, images, key: *key(1).pk }
    }

    /// What is signed.
    pub fn signed(&self) -> Vec<u8> {
        let mut out = vec![];
        [self.magic, self.count, self.entry, self.x0].iter().for_each(|word| out.extend(word.to_le_bytes()));
        for (gpa, size, digest) in &self.images {
            out.extend(gpa.to_le_bytes());
            out.extend(size.to_le_bytes());
            out.extend(digest);
        }
        out.resize(32 + 5 * 48, 0);
        out.extend(self.key);
        out
    }

    /// The whole, signed by `by`.
    pub fn sign(&self, by: &KeyPair) -> Vec<u8> {
        let mut out = self.signed();
        let signature = by.sk.sign(&out, None);
        out.extend(&signature[..]);
        out
    }
}
