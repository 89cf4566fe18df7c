//! Several CPUs map memory for a VM at the same time: who resolves one fault, and who loses.
#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corevisor_interface::calls::{CallError, MAX_PAGES, VM_ORDINARY, VM_PROTECTED};
use kserv_model::layout::RAM_BASE;

use super::super::stage::play;
use super::{Bare, Context, POOL, ensure, rounds, strange};
use crate::arch::entry::{MAX_CPUS, try_read, try_write};
use crate::calls;
use crate::guest::{Failure, at};
use crate::jobs::Numbers;
use crate::pages::{self, BLOCK, PAGE};
use crate::scheduler;

/// What the CPUs want of the same VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    /// The same address, each a page of its own, for a protected VM.
    OneAddress,
    /// The same page, each at another address.
    OnePage,
    /// The same page at the same address.
    Same,
    /// The same in an ordinary VM.
    SameLent,
    /// The first CPU a block, the others pages of it.
    BlockAndPages,
}

const WISHES: [Wish; 5] = [Wish::OneAddress, Wish::OnePage, Wish::Same, Wish::SameLent, Wish::BlockAndPages];

/// What this host leaves in its pages.
const MARK: u64 = 0x4057_2222;

#[derive(Default)]
struct Table {
    vm: AtomicU64,
    block: AtomicU64,
    /// x0 of each CPU's call.
    answers: Numbers,
}

impl Wish {
    /// Where which page is to be, of which block, for this CPU; and how many pages.
    fn of(self, cpu: usize, block: u64) -> (u64, u64, u64) {
        let own = cpu as u64 * PAGE;
        match self {
            Self::OneAddress => (RAM_BASE, block + own, 1),
            Self::OnePage => (RAM_BASE + own, block, 1),
            Self::Same | Self::SameLent => (RAM_BASE, block, 1),
            Self::BlockAndPages if cpu == 0 => (RAM_BASE, block, MAX_PAGES),
            Self::BlockAndPages => (RAM_BASE + 16 * own, block + 16 * own, 1),
        }
    }

    const fn kind(self) -> u64 {
        if matches!(self, Self::SameLent) { VM_ORDINARY } else { VM_PROTECTED }
    }

    /// What a loser may hear.
    fn allows(self, error: CallError) -> bool {
        match self {
            Self::OneAddress | Self::SameLent => error == CallError::Occupied,
            Self::OnePage => error == CallError::NotOwner,
            Self::Same | Self::BlockAndPages => matches!(error, CallError::Occupied | CallError::NotOwner),
        }
    }
}

impl Table {
    fn ask(&self, wish: Wish, cpu: usize) {
        let (gpa, pa, pages) = wish.of(cpu, self.block.load(SeqCst));
        let answer = calls::map_memory(self.vm.load(SeqCst), gpa, pa, pages, 0);
        self.answers[cpu].store(answer.unwrap_or_else(CallError::x0), SeqCst);
    }

    /// Who has won, and whose each page is.
    fn judge(&self, wish: Wish, vm: u64) -> Result<(), Failure> {
        let block = self.block.load(SeqCst);
        let (mut won, mut pages) = (0, 0);
        for cpu in 0..scheduler::online() {
            let answer = self.answers[cpu].load(SeqCst);
            match CallError::from_x0(answer) {
                None if answer != 0 && answer <= MAX_PAGES => (won, pages) = (won + 1, pages + answer),
                Some(error) if wish.allows(error) => {}
                other => return Err(strange("MapMemory", (wish, cpu, other, answer))),
            }
            let (_, pa, _) = wish.of(cpu, block);
            if wish == Wish::OneAddress {
                let lost = CallError::from_x0(answer).is_some();
                let kept = try_read(pa) == Ok(MARK);
                ensure(lost == kept, "a page went though its call was refused, or stayed")?;
            }
        }
        if wish == Wish::BlockAndPages {
            ensure(won >= 1, "nobody mapped anything")?;
        } else {
            ensure(won == 1, &alloc::format!("{wish:?}: {won} CPUs have won"))?;
        }
        let (_, private, _) = at("VmInfo", calls::vm_info(vm))?;
        ensure(wish == Wish::SameLent || private == pages, "the VM has other pages than were mapped")?;
        let away = (0..MAX_PAGES).filter(|n| try_read(block + n * PAGE).is_err()).count() as u64;
        ensure(wish == Wish::SameLent || away == pages, "this host lost other pages than were mapped")
    }
}

/// All of them, `rounds` times each.
pub fn resolvers(context: &Context<'_>) -> Result<String, Failure> {
    let rounds = rounds(context, 20);
    let block = pages::take(MAX_PAGES, BLOCK).ok_or(Failure::Memory(BLOCK))?;
    let table = Arc::new(Table::default());
    table.block.store(block, SeqCst);
    play(move |stage, cpu| {
        for wish in (0..rounds).flat_map(|_| WISHES) {
            let vm = if cpu == 0 {
                (0..MAX_CPUS as u64).for_each(|n| _ = try_write(block + n * PAGE, MARK));
                let vm = Bare::new(wish.kind(), POOL)?;
                table.vm.store(vm.id, SeqCst);
                Some(vm)
            } else {
                None
            };
            if !stage.meet() {
                return Ok(());
            }
            table.ask(wish, cpu);
            if !stage.meet() {
                return Ok(());
            }
            if let Some(vm) = vm {
                table.judge(wish, vm.id)?;
                vm.end()?;
            }
        }
        Ok(())
    })?;
    pages::give(block, MAX_PAGES);
    Ok(alloc::format!("{} times on {} CPUs, each time one has won", rounds * WISHES.len() as u64, scheduler::online()))
}
