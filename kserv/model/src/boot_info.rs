//! What a VM is about to start with, found in its memory: for VMMs that know nothing of protected VMs.
//!
//! | found at                                   | what                                                                        |
//! |--------------------------------------------|-----------------------------------------------------------------------------|
//! | PC                                         | an arm64 `Image`, or QEMU's few instructions that load x0 and jump to one   |
//! | x0                                         | the device tree                                                             |
//! | `/chosen`: linux,initrd-start, linux,initrd-end | the initrd                                                             |
//!
//! The order is that of `scripts/sign`: kernel, device tree, initrd. All is a guess about memory that the VMM may change at any time, and good for saying what is wrong;
//! what counts is what the core digests when the pages have left the host. [`BootInfo::of_manifest`] reads the same from a manifest, whose sizes are
//! those of files: [`BootInfo::explain`] compares. Sources: Linux, Documentation/arch/arm64/booting.rst; Devicetree specification 0.4, chapter 5.
#![forbid(unsafe_code)]

use corevisor_interface::boot::{MANIFEST_MAGIC, Manifest, OLD_MANIFEST_MAGIC};
use corevisor_interface::calls::MAX_IMAGES;

use crate::image::{ImageHeader, PlaceError};
use crate::layout::PAGE;

/// Most images.
pub const IMAGES: usize = MAX_IMAGES as usize;
/// Most bytes of a device tree: what arm64 kernels take.
const DTB_MOST: u64 = 0x20_0000;
/// Most bytes of any image, so that sums cannot overflow.
const MOST: u64 = 1 << 40;
/// `ldr x0, .+24; mov x1, xzr; mov x2, xzr; mov x3, xzr; ldr x4, .+16; br x4`: two addresses follow.
const STUB: [u32; 6] = [0x5800_00c0, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0x5800_0084, 0xd61f_0080];
/// Bytes of the header of an `Image`.
const HEADER: usize = 64;

const FDT_MAGIC: u32 = 0xd00d_feed;
const FDT_BEGIN_NODE: u32 = 1;
const FDT_END_NODE: u32 = 2;
const FDT_PROP: u32 = 3;
const FDT_NOP: u32 = 4;
const FDT_END: u32 = 9;

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unknown {
    /// The VM has no memory there.
    NoMemory,
    /// What is at PC is no kernel.
    Kernel(PlaceError),
    /// A kernel whose header has no size (before Linux 3.17).
    NoSize,
    /// What is at x0 is no device tree.
    NoDeviceTree,
    /// The device tree is damaged.
    BadDeviceTree,
    /// Only one end of the initrd, or its end before its start.
    BadInitrd,
    /// An image does not begin at a page.
    NotAligned,
    /// Two images have a page in common.
    Overlap,
    /// It is no manifest.
    NoManifest,
    /// The manifest is one of the version before.
    OldManifest,
    /// The manifest has another entry point than the VM's kernel.
    OtherEntry,
    /// The manifest has another x0.
    OtherX0,
    /// The manifest has another number of images.
    OtherCount,
    /// The manifest has its kernel elsewhere or of another size.
    OtherKernel,
    /// The same of the device tree.
    OtherDeviceTree,
    /// The same of the initrd.
    OtherInitrd,
}

impl Unknown {
    /// In words; the text ends with a zero byte, for C.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoMemory => "the VM has no memory where its kernel or device tree should be\0",
            Self::Kernel(PlaceError::Gzip) => "the kernel at PC is compressed with gzip\0",
            Self::Kernel(PlaceError::Zboot) => "the kernel at PC is a self-unpacking EFI image\0",
            Self::Kernel(PlaceError::BigEndian) => "the kernel at PC is big-endian\0",
            Self::Kernel(_) => "there is no arm64 Image at PC\0",
            Self::NoSize => "the kernel's header does not say how large it is\0",
            Self::NoDeviceTree => "there is no device tree at x0\0",
            Self::BadDeviceTree => "the device tree at x0 is damaged\0",
            Self::BadInitrd => "linux,initrd-start and linux,initrd-end make no sense\0",
            Self::NotAligned => "an image does not begin at a page of its own\0",
            Self::Overlap => "two images have a page in common\0",
            Self::NoManifest => "the manifest is none\0",
            Self::OldManifest => "the manifest is of an older version: sign the images again\0",
            Self::OtherEntry => "the manifest's entry point is not the VM's kernel\0",
            Self::OtherX0 => "the manifest's x0 is not the VM's device tree\0",
            Self::OtherCount => "the manifest has another number of images than the VM\0",
            Self::OtherKernel => "the manifest's kernel is elsewhere or larger than the VM's\0",
            Self::OtherDeviceTree => "the manifest's device tree is elsewhere or of another size\0",
            Self::OtherInitrd => "the manifest's initrd is elsewhere or of another size\0",
        }
    }
}

/// One image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Image {
    /// Where the VM sees it; page-aligned.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
}

impl Image {
    const fn pages(self) -> u64 {
        self.size.div_ceil(PAGE)
    }

    const fn meets(self, other: Self) -> bool {
        self.gpa < other.gpa + other.pages() * PAGE && other.gpa < self.gpa + self.pages() * PAGE
    }
}

/// What a VM starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct BootInfo {
    /// Where vCPU 0 enters.
    pub entry: u64,
    /// x0 of vCPU 0: the device tree.
    pub x0: u64,
    /// How many images there are.
    pub count: u64,
    /// The images: kernel, device tree, initrd.
    pub images: [Image; IMAGES],
}

/// Copies bytes of the VM's memory; `false` if there is none.
pub type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> bool;

fn bytes<const N: usize>(read: Read<'_>, gpa: u64) -> Result<[u8; N], Unknown> {
    let mut bytes = [0; N];
    if gpa.checked_add(N as u64).is_some() && read(gpa, &mut bytes) { Ok(bytes) } else { Err(Unknown::NoMemory) }
}

fn little(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes.iter().skip(at)).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

impl BootInfo {
    /// From the registers of vCPU 0 and the VM's memory.
    ///
    /// # Errors
    /// [`Unknown`] names what is not as it should be.
    pub fn infer(read: Read<'_>, pc: u64, x0: u64) -> Result<Self, Unknown> {
        let (entry, x0) = behind_stub(read, pc, x0)?;
        let header = ImageHeader::parse(&bytes::<HEADER>(read, entry)?).map_err(Unknown::Kernel)?;
        if header.image_size == 0 || header.image_size > MOST {
            return Err(Unknown::NoSize);
        }
        let tree = Tree::open(read, x0)?;
        let initrd = tree.initrd(read)?;
        let mut info = Self { entry, x0, count: 2, ..Self::default() };
        info.images[0] = Image { gpa: entry, size: header.image_size };
        info.images[1] = Image { gpa: x0, size: tree.size.into() };
        if let Some(initrd) = initrd {
            (info.images[2], info.count) = (initrd, 3);
        }
        info.check()?;
        Ok(info)
    }

    /// From a manifest: no signature is looked at.
    ///
    /// # Errors
    /// [`Unknown::NoManifest`], [`Unknown::OldManifest`], [`Unknown::NotAligned`], [`Unknown::Overlap`].
    pub fn of_manifest(manifest: &[u8]) -> Result<Self, Unknown> {
        const FIRST: usize = core::mem::offset_of!(Manifest, image);
        const EACH: usize = size_of::<corevisor_interface::boot::ManifestImage>();
        if manifest.starts_with(&OLD_MANIFEST_MAGIC.to_le_bytes()) {
            return Err(Unknown::OldManifest);
        }
        let count = little(manifest, 8);
        if manifest.len() < size_of::<Manifest>()
            || little(manifest, 0) != MANIFEST_MAGIC
            || !(1..=MAX_IMAGES).contains(&count)
        {
            return Err(Unknown::NoManifest);
        }
        let mut info = Self { entry: little(manifest, 16), x0: little(manifest, 24), count, ..Self::default() };
        for (n, image) in info.images.iter_mut().enumerate().take(count as usize) {
            let at = FIRST + n * EACH;
            *image = Image { gpa: little(manifest, at), size: little(manifest, at + 8) };
        }
        info.check()?;
        Ok(info)
    }

    /// The images that there are.
    pub fn images(&self) -> impl Iterator<Item = Image> {
        self.images.into_iter().take(usize::try_from(self.count).unwrap_or(IMAGES))
    }

    fn check(&self) -> Result<(), Unknown> {
        for (n, image) in self.images().enumerate() {
            if !image.gpa.is_multiple_of(PAGE) || image.gpa > MOST || image.size == 0 || image.size > MOST {
                return Err(Unknown::NotAligned);
            }
            if self.images().take(n).any(|other| image.meets(other)) {
                return Err(Unknown::Overlap);
            }
        }
        Ok(())
    }

    /// Says how a manifest differs from what was found in the VM (`self`). The kernel of a manifest is as long as its file, which the memory
    /// that it needs is not.
    ///
    /// # Errors
    /// The first difference.
    pub fn explain(&self, manifest: &Self) -> Result<(), Unknown> {
        if manifest.entry != self.entry {
            return Err(Unknown::OtherEntry);
        }
        if manifest.x0 != self.x0 {
            return Err(Unknown::OtherX0);
        }
        if manifest.count != self.count {
            return Err(Unknown::OtherCount);
        }
        let names = [Unknown::OtherKernel, Unknown::OtherDeviceTree, Unknown::OtherInitrd];
        for (n, (mine, theirs)) in self.images().zip(manifest.images()).enumerate() {
            let size = if n == 0 { theirs.pages() <= mine.pages() } else { theirs.pages() == mine.pages() };
            if mine.gpa != theirs.gpa || !size {
                return Err(names.get(n).copied().unwrap_or(Unknown::OtherCount));
            }
        }
        Ok(())
    }
}

/// Entry point and device tree: those that QEMU's instructions at `pc` load, or `pc` and `x0` themselves.
fn behind_stub(read: Read<'_>, pc: u64, x0: u64) -> Result<(u64, u64), Unknown> {
    let code = bytes::<40>(read, pc)?;
    let is_stub = STUB.iter().enumerate().all(|(n, word)| little(&code, 4 * n) as u32 == *word);
    Ok(if is_stub { (little(&code, 32), little(&code, 24)) } else { (pc, x0) })
}

/// A device tree in the VM's memory: offsets are from its first byte.
struct Tree {
    base: u64,
    size: u32,
    structure: u32,
    structure_end: u32,
    strings: u32,
}

impl Tree {
    fn open(read: Read<'_>, base: u64) -> Result<Self, Unknown> {
        let header = bytes::<40>(read, base)?;
        let word = |n: usize| (little(&header, 4 * n) as u32).swap_bytes();
        if word(0) != FDT_MAGIC {
            return Err(Unknown::NoDeviceTree);
        }
        let (size, structure, strings, structure_size) = (word(1), word(2), word(3), word(9));
        let end = structure.checked_add(structure_size).filter(|end| *end <= size).ok_or(Unknown::BadDeviceTree)?;
        if u64::from(size) > DTB_MOST || strings >= size || !structure.is_multiple_of(4) {
            return Err(Unknown::BadDeviceTree);
        }
        Ok(Self { base, size, structure, structure_end: end, strings })
    }

    fn word(&self, read: Read<'_>, at: u32) -> Result<u32, Unknown> {
        if at.checked_add(4).is_none_or(|end| end > self.structure_end) {
            return Err(Unknown::BadDeviceTree);
        }
        Ok(u32::from_be_bytes(bytes(read, self.base + u64::from(at))?))
    }

    /// Whether the text at this offset is `name`, with its zero byte.
    fn is(&self, read: Read<'_>, at: u32, name: &[u8]) -> Result<bool, Unknown> {
        const MOST_NAME: usize = 24;
        let mut text = [0; MOST_NAME];
        let fits = at.checked_add(name.len() as u32).is_some_and(|end| end <= self.size);
        let Some(text) = text.get_mut(..name.len()).filter(|_| fits) else { return Ok(false) };
        if !read(self.base + u64::from(at), text) {
            return Err(Unknown::NoMemory);
        }
        Ok(text == name)
    }

    /// A number of one or two cells.
    fn number(&self, read: Read<'_>, at: u32, length: u32) -> Result<u64, Unknown> {
        match length {
            4 => Ok(self.word(read, at)?.into()),
            8 => Ok(u64::from(self.word(read, at)?) << 32 | u64::from(self.word(read, at.saturating_add(4))?)),
            _ => Err(Unknown::BadInitrd),
        }
    }

    /// The initrd that `/chosen` names.
    fn initrd(&self, read: Read<'_>) -> Result<Option<Image>, Unknown> {
        let (mut at, mut depth, mut chosen) = (self.structure, 0u32, false);
        let (mut start, mut end) = (None, None);
        loop {
            let token = self.word(read, at)?;
            at += 4;
            match token {
                FDT_BEGIN_NODE => {
                    depth += 1;
                    chosen = depth == 2 && self.is(read, at, b"chosen\0")?;
                    at = self.behind_name(read, at)?;
                }
                FDT_END_NODE => {
                    depth = depth.checked_sub(1).ok_or(Unknown::BadDeviceTree)?;
                    chosen = false;
                }
                FDT_PROP => {
                    let (length, name) = (self.word(read, at)?, self.word(read, at.saturating_add(4))?);
                    let name = self.strings.saturating_add(name);
                    let value = at.saturating_add(8);
                    if chosen && self.is(read, name, b"linux,initrd-start\0")? {
                        start = Some(self.number(read, value, length)?);
                    } else if chosen && self.is(read, name, b"linux,initrd-end\0")? {
                        end = Some(self.number(read, value, length)?);
                    }
                    let behind = length.checked_next_multiple_of(4).and_then(|length| value.checked_add(length));
                    at = behind.ok_or(Unknown::BadDeviceTree)?;
                }
                FDT_NOP => {}
                FDT_END => break,
                _ => return Err(Unknown::BadDeviceTree),
            }
        }
        match (start, end) {
            (None, None) => Ok(None),
            (Some(start), Some(end)) if start < end => Ok(Some(Image { gpa: start, size: end - start })),
            _ => Err(Unknown::BadInitrd),
        }
    }

    /// Names of nodes are at most a few words: looked at word by word for the one with the zero byte.
    fn behind_name(&self, read: Read<'_>, mut at: u32) -> Result<u32, Unknown> {
        loop {
            let word = self.word(read, at)?;
            at += 4;
            if word.to_be_bytes().contains(&0) {
                return Ok(at);
            }
        }
    }
}
