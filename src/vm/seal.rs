//! Layer 21, BootOps, one part: snapshots of protected VMs, sealed, in the host's keeping.
//!
//! | primitive                        | VM state                  | does                                                 | lock               |
//! |----------------------------------|---------------------------|------------------------------------------------------|--------------------|
//! | [`seal_page`], [`unseal_page`]   | PowerOff; Ready           | a page out, encrypted; a page in, checked            | Vm, below it S2Page, Npt |
//! | [`seal_vcpu`], [`unseal_vcpu`]   | PowerOff; Ready           | all registers of a vCPU                              | Vm, below it S2Page |
//! | [`seal_vm`], [`unseal_vm`]       | PowerOff; Ready -> Verified | what belongs to the snapshot; whether all is there | Vm, below it S2Page |
//!
//! Everything is ChaCha20-Poly1305 under the snapshot's own key, the nonce a sequence number under it: a number of a snapshot and a sequence
//! number are given once, so no nonce comes twice. What is sealed is bound to its kind (page, shared page, vCPU, whole), its place (gfn or vCPU
//! number), its sequence number and its snapshot; so nothing can be swapped, and nothing of another VM or an older snapshot be mixed in (K §4.8: the
//! published code encrypts with a key from a standard's example, without any of this, and leaves PSTATE in clear).
//!
//! Only a VM that was allowed to run, never runs again, and has all its memory is sealed: so nothing changes while it is, and ReclaimVm ends it. Pages go out in ascending order, each once,
//! all of them; a VM that comes in has them all exactly if it has as many, because each of them fits one place only. What the host can do is to bring
//! the same snapshot in again, or twice.
//!
//! Below: BootAux. Above: TrapDispatcher. Specification: `tests/seal.rs`. Source: SeKVM layer BootOps (`save_encrypted_vcpu`,
//! `save_encrypt_buf`, `load_decrypt_buf`); K §2 L21, §4.8, §8.2 D5, D6.
#![forbid(unsafe_code)]

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};

use super::boot_core::gen_snapshot;
use super::mmio_guard::{MAX_RANGES, MmioGuard};
use super::{Power, Snapshot, VcpuState, Vm, VmState, Vms};
use crate::abstract_machine::addr::{Gfn, PAGE_SIZE, Pfn, PhysRange, VcpuId, VmId};
use crate::abstract_machine::shadow::{BankReg, Shadow, ShadowReg, VGIC_WORDS};
use crate::abstract_machine::{ForeignPage, Machine};
use crate::interface::CallError;
use crate::memory::memory_ops::{self, Scrub};
use crate::memory::page_manager::PageState;
use crate::npt::VmKind;

const PAGE: usize = PAGE_SIZE as usize;
/// Words of a seal's head: kind, place, sequence, snapshot, tag (2); two are 0.
const HEAD: usize = 8;
/// Words of a vCPU: its power, then its registers.
const VCPU_WORDS: usize = 1 + 31 + 9 + BankReg::ALL.len() + 64 + 2 + VGIC_WORDS;
/// Words of the whole: identity, pages, vCPUs, entry, x0, cntvoff, bits of addresses, which device addresses it named.
const WHOLE_WORDS: usize = 8 + 6 + 1 + 2 * MAX_RANGES;

/// What is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
enum Kind {
    Page = 1,
    SharedPage = 2,
    Vcpu = 3,
    Whole = 4,
}

/// What a seal says, in clear, and vouches for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    kind: u64,
    place: u64,
    sequence: u64,
    snapshot: u64,
    tag: [u64; 2],
}

impl Head {
    fn words(&self) -> [u64; HEAD] {
        [self.kind, self.place, self.sequence, self.snapshot, self.tag[0], self.tag[1], 0, 0]
    }

    fn from_words([kind, place, sequence, snapshot, tag0, tag1, ..]: [u64; HEAD]) -> Self {
        Self { kind, place, sequence, snapshot, tag: [tag0, tag1] }
    }

    fn associated(&self) -> [u8; 32] {
        bytes_of([self.kind, self.place, self.sequence, self.snapshot])
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = [0; 12];
        nonce.iter_mut().zip(self.sequence.to_le_bytes()).for_each(|(place, byte)| *place = byte);
        nonce.into()
    }
}

fn bytes_of<const W: usize, const B: usize>(words: [u64; W]) -> [u8; B] {
    let mut bytes = [0; B];
    bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
    bytes
}

/// The key of snapshot `number`.
#[inline(never)]
fn key_of<M: Machine>(vms: &Vms<M>, number: u64) -> Result<[u8; 32], CallError> {
    Ok(vms.sealing().ok_or(CallError::NotSupported)?.of_snapshot(number))
}

/// The key of the snapshot that is made of the VM; the snapshot begins with the first call.
#[inline(never)]
fn key_to_seal<M: Machine>(vms: &Vms<M>, snapshot: &mut Snapshot) -> Result<[u8; 32], CallError> {
    vms.sealing().ok_or(CallError::NotSupported)?;
    if snapshot.number == 0 {
        *snapshot = Snapshot { number: gen_snapshot(vms), ..Snapshot::NONE };
    }
    key_of(vms, snapshot.number)
}

/// Encrypts `content` in place as the next of the snapshot, whose key is `key`. Its head.
#[inline(never)]
fn seal(
    key: &[u8; 32],
    snapshot: &mut Snapshot,
    kind: Kind,
    place: u64,
    content: &mut [u8],
) -> Result<Head, CallError> {
    snapshot.sequence += 1;
    let (number, sequence) = (snapshot.number, snapshot.sequence);
    let mut head = Head { kind: kind as u64, place, sequence, snapshot: number, tag: [0; 2] };
    let cipher = ChaCha20Poly1305::new(Key::from_slice(key));
    let sealed = cipher.encrypt_in_place_detached(&head.nonce(), &head.associated(), content);
    let tag: [u8; 16] = sealed.map_err(|_| CallError::NotSupported)?.into();
    head.tag = [0, 8].map(|at| tag[at..].first_chunk().map_or(0, |half| u64::from_le_bytes(*half)));
    Ok(head)
}

/// Decrypts `content` in place, if the head says that it is what is asked for, and the seal that it is true.
#[inline(never)]
fn unseal(
    key: &[u8; 32],
    vm: &Vm,
    kinds: &[Kind],
    place: u64,
    head: Head,
    content: &mut [u8],
) -> Result<(), CallError> {
    let expected = vm.snapshot.number;
    let is_asked_for = kinds.iter().any(|kind| *kind as u64 == head.kind)
        && head.place == place
        && head.snapshot != 0
        && (expected == 0 || head.snapshot == expected);
    if !is_asked_for {
        return Err(CallError::NotAuthentic);
    }
    let tag: [u8; 16] = bytes_of(head.tag);
    let cipher = ChaCha20Poly1305::new(Key::from_slice(key));
    let opened = cipher.decrypt_in_place_detached(&head.nonce(), &head.associated(), content, Tag::from_slice(&tag));
    opened.map_err(|_| CallError::NotAuthentic)
}

/// A VM that can be saved: protected, once allowed to run, now off by the host's wish with no vCPU running, and with all its memory. One that switched itself off, or failed,
/// would go on behind what it meant to be its end. Once the host has begun to take that back, what is left
/// is not what ran: a snapshot of as many pages as are left by then would come back with holes, which the host may fill.
#[inline(never)]
fn check_save<M: Machine>(vms: &Vms<M>, id: VmId, vm: &Vm) -> Result<(), CallError> {
    vm.in_state(&[VmState::PowerOff])?;
    vm.of_kind(VmKind::Protected)?;
    if !vm.resumable {
        // What nobody vouched for would come back as if somebody had.
        return Err(CallError::WrongState);
    }
    if !memory_ops::has_memory(vms.memory(), id) {
        return Err(CallError::WrongState);
    }
    if vm.active != 0 { Err(CallError::Busy) } else { Ok(()) }
}

/// A VM that can be made from a snapshot: protected, new, without images.
#[inline(never)]
fn check_restore(vm: &Vm) -> Result<(), CallError> {
    vm.in_state(&[VmState::Ready])?;
    vm.of_kind(VmKind::Protected)?;
    if vm.image_count == 0 { Ok(()) } else { Err(CallError::WrongState) }
}

#[inline(never)]
fn read_words<M: Machine>(vms: &Vms<M>, pfn: Pfn, first: usize, bytes: &mut [u8]) {
    let page = vms.machine().open_page(pfn);
    for (n, bytes) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
        *bytes = page.read(first + n).to_le_bytes();
    }
}

#[inline(never)]
fn write_words<M: Machine>(vms: &Vms<M>, pfn: Pfn, first: usize, bytes: &[u8]) {
    let page = vms.machine().open_page(pfn);
    for (n, bytes) in bytes.as_chunks().0.iter().enumerate() {
        page.write(first + n, u64::from_le_bytes(*bytes));
    }
}

#[inline(never)]
fn read_head<M: Machine>(vms: &Vms<M>, pfn: Pfn) -> Head {
    let mut words = [0; HEAD];
    vms.machine().read_page(pfn, 0, &mut words);
    Head::from_words(words)
}

// ---- pages ----------------------------------------------------------------------------------------------------------------

/// Seals the VM's page at `gfn`: ciphertext into the host's page `out`, head into the host's page `tag`. Pages go in ascending order.
///
/// # Errors
/// [`CallError::WrongState`], also once memory of the VM was reclaimed; [`CallError::Busy`], [`CallError::NotSupported`] without a source of random numbers; [`CallError::InvalidParameter`] if the
/// page comes before one that is sealed, or the host's pages are one; [`CallError::NotOwner`] if the VM has no page of its own there; as
/// [`memory_ops::hold_mailbox`] for the host's pages. Nothing has changed then.
#[inline(never)]
pub fn seal_page<M: Machine>(vms: &Vms<M>, id: VmId, gfn: Gfn, out: Pfn, tag: Pfn) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    check_save(vms, id, &vm)?;
    if gfn < vm.snapshot.next || out == tag {
        return Err(CallError::InvalidParameter);
    }
    let (kind, pfn) = match memory_ops::walk_vm(vms.memory(), id, gfn) {
        Some((pfn, PageState::Private { .. })) => (Kind::Page, pfn),
        Some((pfn, PageState::Shared { .. })) => (Kind::SharedPage, pfn),
        _ => return Err(CallError::NotOwner),
    };
    let next = gfn.checked_add(1).ok_or(CallError::InvalidParameter)?;
    let key = key_to_seal(vms, &mut vm.snapshot)?;
    vms.with_host_page(out, |_| {
        vms.with_host_page(tag, |machine| {
            // The VM may have gone around the caches: what they still hold is not what it had there.
            machine.sync_page_to_poc(PhysRange::of_pages(pfn, 1));
            let mut content = [0; PAGE];
            read_words(vms, pfn, 0, &mut content);
            let head = seal(&key, &mut vm.snapshot, kind, gfn.raw(), &mut content)?;
            write_words(vms, out, 0, &content);
            machine.write_page(tag, 0, &head.words());
            vm.snapshot.next = next;
            vm.snapshot.pages += 1;
            Ok(())
        })
    })??
}

/// The host's page `data`, whose head is in the host's page `tag`, becomes the VM's page at `gfn`, decrypted after it has left the host.
///
/// # Errors
/// [`CallError::WrongState`], [`CallError::NotSupported`], [`CallError::InvalidParameter`] for an address that the VM does not have,
/// [`CallError::NotAuthentic`] if it is no page for this place of the snapshot; as [`memory_ops::assign_pfn_to_vm`]. Nothing has changed then.
#[inline(never)]
pub fn unseal_page<M: Machine>(vms: &Vms<M>, id: VmId, gfn: Gfn, data: Pfn, tag: Pfn) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    check_restore(&vm)?;
    vm.has_range(gfn, 1)?;
    let head = vms.with_host_page(tag, |_| read_head(vms, tag))?;
    let key = key_of(vms, head.snapshot)?;
    unseal_content(vms, &vm, (id, gfn, data), head, &key)?;

    if head.kind == Kind::SharedPage as u64 {
        // It is the VM's, and shown to nobody yet: this cannot be refused.
        memory_ops::grant_vm_page(vms.memory(), id, gfn)?;
    }
    vm.snapshot.number = head.snapshot;
    vm.snapshot.pages += 1;
    Ok(())
}

/// Gives the VM its page and what belongs into it. Not inlined: the page on the stack is there for as long as it must be.
#[inline(never)]
fn unseal_content<M: Machine>(
    vms: &Vms<M>,
    vm: &Vm,
    (id, gfn, data): (VmId, Gfn, Pfn),
    head: Head,
    key: &[u8; 32],
) -> Result<(), CallError> {
    let mut content = [0; PAGE];
    vms.with_host_page(data, |_| read_words(vms, data, 0, &mut content))?;
    unseal(key, vm, &[Kind::Page, Kind::SharedPage], gfn.raw(), head, &mut content)?;
    memory_ops::assign_pfn_to_vm(vms.memory(), id, gfn, data, Scrub::Keep)?;

    write_words(vms, data, 0, &content);
    if let Some(range) = PhysRange::new(data.addr(), PAGE_SIZE) {
        vms.machine().sync_page_to_poc(range);
    }
    Ok(())
}

// ---- vCPUs ----------------------------------------------------------------------------------------------------------------

/// Every register of a context but what is of one run only.
fn registers() -> impl Iterator<Item = ShadowReg> {
    use ShadowReg::{Cntvoff, Dirty, EsrEl2, Exits, FarEl2, Flags, Fpcr, Fpsr, HpfarEl2, Pc, Pstate};
    let control = [Pc, Pstate, EsrEl2, FarEl2, HpfarEl2, Dirty, Flags, Cntvoff, Exits, Fpsr, Fpcr];
    let bank = BankReg::ALL.iter().map(|reg| ShadowReg::Bank(*reg));
    let vgic = (0..VGIC_WORDS as u8).map(ShadowReg::Vgic);
    (0..31).map(ShadowReg::X).chain(control).chain(bank).chain((0..64).map(ShadowReg::Q)).chain(vgic)
}

fn power_of(word: u64) -> Power {
    match word {
        1 => Power::Pending,
        2 => Power::On,
        3 => Power::Off,
        _ => Power::Never,
    }
}

fn power_word(power: Power) -> u64 {
    match power {
        Power::Never => 0,
        Power::Pending => 1,
        Power::On => 2,
        Power::Off => 3,
    }
}

/// Seals all registers of the vCPU and its power into the host's page `out`: head, then ciphertext. K: `save_encrypted_vcpu`.
///
/// # Errors
/// As [`seal_page`]; [`CallError::NoSuchObject`].
#[inline(never)]
pub fn seal_vcpu<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId, out: Pfn) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    check_save(vms, id, &vm)?;
    let (shadow, power): (Shadow, Power) = vm.vcpu(vcpu).map(|vcpu| (vcpu.shadow, vcpu.power))?;
    let key = key_to_seal(vms, &mut vm.snapshot)?;
    vms.with_host_page(out, |machine| {
        let mut content = [0; VCPU_WORDS * 8];
        let values = registers().map(|reg| machine.get_shadow_ctxt(shadow, reg));
        let words = core::iter::once(power_word(power)).chain(values);
        content.as_chunks_mut().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        let head = seal(&key, &mut vm.snapshot, Kind::Vcpu, vcpu.index() as u64, &mut content)?;
        machine.write_page(out, 0, &head.words());
        write_words(vms, out, HEAD, &content);
        vm.snapshot.vcpus |= 1 << vcpu.index();
        Ok(())
    })?
}

/// The vCPU goes on from the registers that are sealed in the host's page `data`. K: `load_encrypted_vcpu`.
///
/// # Errors
/// As [`unseal_page`]; [`CallError::NoSuchObject`].
#[inline(never)]
pub fn unseal_vcpu<M: Machine>(vms: &Vms<M>, id: VmId, vcpu: VcpuId, data: Pfn) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    check_restore(&vm)?;
    let shadow = vm.vcpu(vcpu)?.shadow;
    let mut content = [0; VCPU_WORDS * 8];
    let head = vms.with_host_page(data, |_| {
        read_words(vms, data, HEAD, &mut content);
        read_head(vms, data)
    })?;
    let key = key_of(vms, head.snapshot)?;
    unseal(&key, &vm, &[Kind::Vcpu], vcpu.index() as u64, head, &mut content)?;

    let mut words = content.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let power = power_of(words.next().unwrap_or(0));
    registers().zip(words).for_each(|(reg, value)| vms.machine().set_shadow_ctxt(shadow, reg, value));
    vm.vcpu(vcpu)?.power = power;
    vm.snapshot.number = head.snapshot;
    vm.snapshot.vcpus |= 1 << vcpu.index();
    Ok(())
}

// ---- the whole ------------------------------------------------------------------------------------------------------------

/// The vCPUs that are registered, by bit.
#[inline(never)]
fn registered(vm: &Vm) -> u16 {
    let known = vm.vcpus.iter().enumerate().filter(|(_, vcpu)| vcpu.state != VcpuState::Unused);
    known.fold(0, |bits, (n, _)| bits | 1 << n)
}

/// Ends a save: what belongs to the snapshot, sealed into the host's page `out`. Its number and its pages.
///
/// # Errors
/// As [`seal_page`]; [`CallError::WrongState`] also while a page or a vCPU is not sealed.
#[inline(never)]
pub fn seal_vm<M: Machine>(vms: &Vms<M>, id: VmId, out: Pfn) -> Result<(u64, u64), CallError> {
    let mut vm = vms.vm(id)?;
    check_save(vms, id, &vm)?;
    let Snapshot { number, pages, vcpus, .. } = vm.snapshot;
    if number == 0 || memory_ops::vm_pages(vms.memory(), id) != Some(pages) || vcpus != registered(&vm) {
        return Err(CallError::WrongState);
    }
    let key = key_to_seal(vms, &mut vm.snapshot)?;
    vms.with_host_page(out, |machine| {
        let mut content = [0; WHOLE_WORDS * 8];
        let (identity, rest) = content.split_at_mut(vm.identity.len());
        identity.copy_from_slice(&vm.identity);
        let words = [pages, vcpus.into(), vm.entry, vm.x0, vm.cntvoff, vm.ipa_bits.into()];
        let words = words.into_iter().chain(vm.guard.words());
        rest.as_chunks_mut().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        let head = seal(&key, &mut vm.snapshot, Kind::Whole, 0, &mut content)?;
        machine.write_page(out, 0, &head.words());
        write_words(vms, out, HEAD, &content);
        Ok((number, pages))
    })?
}

/// Ends a restore: the VM may run if every page and vCPU of the snapshot is there, and no vCPU more.
///
/// # Errors
/// As [`unseal_page`]; [`CallError::WrongState`] also while something is missing. Nothing has changed then.
#[inline(never)]
pub fn unseal_vm<M: Machine>(vms: &Vms<M>, id: VmId, data: Pfn) -> Result<(), CallError> {
    let mut vm = vms.vm(id)?;
    check_restore(&vm)?;
    let mut content = [0; WHOLE_WORDS * 8];
    let head = vms.with_host_page(data, |_| {
        read_words(vms, data, HEAD, &mut content);
        read_head(vms, data)
    })?;
    let key = key_of(vms, head.snapshot)?;
    unseal(&key, &vm, &[Kind::Whole], 0, head, &mut content)?;
    let word = |n: usize| content.as_chunks().0.get(8 + n).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let has_all = vm.snapshot.number == head.snapshot
        && vm.snapshot.pages == word(0)
        && u64::from(vm.snapshot.vcpus) == word(1)
        && vm.snapshot.vcpus == registered(&vm)
        && u64::from(vm.ipa_bits) == word(5);
    if !has_all {
        return Err(CallError::WrongState);
    }
    (vm.entry, vm.x0, vm.cntvoff) = (word(2), word(3), word(4));
    if let Some(identity) = content.first_chunk() {
        vm.identity = *identity;
    }
    vm.guard = MmioGuard::from_words(content.as_chunks().0.iter().skip(8 + 6).map(|bytes| u64::from_le_bytes(*bytes)));
    vms.note_guard(id, vm.guard.is_enrolled());
    vm.snapshot = Snapshot::NONE;
    (vm.state, vm.resumable) = (VmState::Verified, true);
    Ok(())
}
