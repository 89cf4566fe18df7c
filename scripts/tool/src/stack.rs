//! How much of a stack the core's code may need: the frames of its functions, and who calls whom.
//!
//! Calls by pointer are few, and each goes where its caller's place in [`BY_POINTER`] says. A path may come to one panic, whose report then stands on the same
//! stack; what fails in that is a panic no more.

use crate::error::{ElfError, read};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::Path,
};

/// The deepest path from a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Bytes of the stack, those of the function among them.
    pub bytes: u64,
    /// The functions on the path, each with its bytes.
    pub path: Vec<(String, u64)>,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.iter().try_for_each(|(name, bytes)| writeln!(f, "{bytes:6} {name}"))
    }
}

/// A program's stacks cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// The program cannot be looked at.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// No function is called so.
    #[error("the program has no function called {0}")]
    Missing(String),
    /// It calls itself, and nobody says how often ([`LEVELS`]).
    #[error("{0} calls itself")]
    Recursive(String),
}

/// Who calls by pointer, and whom: parts of names, the first that fits. All others call the logger.
const BY_POINTER: &[(&str, &[&str])] = &[
    ("corevisor::platform::logger::", &["as corevisor::platform::console::Uart>"]),
    ("core::fmt::write", &["core::fmt"]),
    // Not by way of `PadAdapter`: nobody asks for `{:#?}`.
    ("core::fmt", &["logger::Line as core::fmt::Write>", "logger::PanicWriter as core::fmt::Write>"]),
    ("console::Console::put", &["as corevisor::platform::console::Uart>"]),
    ("trap_handler::host_smc_handler", &["as corevisor::abstract_machine::cpu::SmcServer>"]),
    ("pvops::firmware", &["as corevisor::abstract_machine::cpu::SmcServer>"]),
    ("as corevisor::abstract_machine::cpu::SmcServer>", &["host_smc_dispatcher::{{closure}}", "as log::Log>"]),
    ("spt::mmio_pt_walk::step", &["mmio_pt_alloc::alloc_smmu_"]),
    // The world switch: entered by `eret`, left by a vector (boot/switch.S).
    ("run_vm", &["vm_vectors"]),
    ("vm_exit", &["world::left"]),
];
const LOGGER: &[&str] = &["as log::Log>"];
/// Functions that call themselves, and how deep: once for each level of a table.
const LEVELS: &[(&str, u64)] = &[("npt_walk::free_tree", 4)];
/// What leads to `failure::report`, and nowhere back.
const PANICS: &[&str] = &[
    "core::panicking",
    "rust_begin_unwind",
    "failure::panicked",
    "unwrap_failed",
    "expect_failed",
    "_fail",
    "len_mismatch",
];
/// A value's text may have texts of other values in it, which have none.
const NESTED: u8 = 2;
const WRITES: &str = "core::fmt::write";

struct Function {
    name: String,
    frame: u64,
    calls: BTreeSet<usize>,
    by_pointer: bool,
}

/// How far a path is: texts in texts; and whether it may panic, does, or did.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    function: usize,
    texts: u8,
    panic: Panic,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Panic {
    MayCome,
    Comes,
    Came,
}

/// All functions of a program.
pub struct Program {
    functions: Vec<Function>,
    known: HashMap<Place, Need>,
    open: Vec<Place>,
}

impl Program {
    /// Reads a program for AArch64.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn of(elf: &Path) -> Result<Self, ElfError> {
        let bytes = read(elf)?;
        let wrong = ElfError::at(elf);
        let file = object::File::parse(&*bytes).map_err(&wrong)?;
        let mut code = BTreeMap::new();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let words = section.data().map_err(&wrong)?.as_chunks::<4>().0;
            code.extend((section.address()..).step_by(4).zip(words.iter().map(|word| u32::from_le_bytes(*word))));
        }
        // `$x` and `$d` say what is code and what is data.
        let symbols = file.symbols().filter(|symbol| code.contains_key(&symbol.address()));
        let named = symbols.map(|symbol| (symbol.address(), symbol.name().unwrap_or_default()));
        let named: BTreeMap<_, _> = named.filter(|(_, name)| !name.is_empty() && !name.starts_with('$')).collect();
        let starts: Vec<_> = named.keys().copied().collect();
        let mut functions: Vec<_> = named.into_values().map(Function::called).collect();
        for (at, word) in code {
            let Some(this) = function_at(&starts, at) else { continue };
            let function = &mut functions[this];
            function.frame += pushed(word);
            function.by_pointer |= calls_by_pointer(word);
            // A loop is no call.
            function.calls.extend(jump(word, at).and_then(|(to, calls)| {
                function_at(&starts, to).filter(|callee| *callee != this || calls && starts[this] == to)
            }));
        }
        Ok(Self { functions, known: HashMap::new(), open: Vec::new() })
    }

    /// What `function` may need: the end of its path, `platform::boot::trap_lower_hvc`.
    ///
    /// # Errors
    /// [`StackError`].
    pub fn need(&mut self, function: &str) -> Result<Need, StackError> {
        let found = self.functions.iter().position(|known| known.name.ends_with(function));
        let function = found.ok_or_else(|| StackError::Missing(function.to_owned()))?;
        self.deepest(Place { function, texts: 0, panic: Panic::MayCome })
    }

    fn deepest(&mut self, place: Place) -> Result<Need, StackError> {
        if let Some(known) = self.known.get(&place) {
            return Ok(known.clone());
        }
        let Function { name, frame, .. } = &self.functions[place.function];
        let (name, levels) =
            (name.clone(), LEVELS.iter().find(|(part, _)| name.contains(part)).map(|(_, levels)| levels));
        let frame = frame * levels.unwrap_or(&1);
        if self.open.contains(&place) {
            return if levels.is_some() { Ok(Need::default()) } else { Err(StackError::Recursive(name)) };
        }
        self.open.push(place);
        let mut deepest = Need::default();
        for callee in self.callees(place.function) {
            let Some(next) = self.step(place, callee) else { continue };
            let need = self.deepest(next)?;
            if need.bytes > deepest.bytes {
                deepest = need;
            }
        }
        self.open.pop();
        let path = [(name, frame)].into_iter().chain(deepest.path).collect();
        let need = Need { bytes: frame + deepest.bytes, path };
        self.known.insert(place, need.clone());
        Ok(need)
    }

    fn callees(&self, function: usize) -> Vec<usize> {
        let function = &self.functions[function];
        let listed =
            BY_POINTER.iter().find(|(caller, _)| is_called(&function.name, caller)).map(|(_, callees)| *callees);
        let parts = if function.by_pointer { listed.unwrap_or(LOGGER) } else { listed.unwrap_or_default() };
        let fits = |callee: &Function| parts.iter().any(|part| is_called(&callee.name, part));
        let by_pointer = self.functions.iter().enumerate().filter(|(_, callee)| fits(callee)).map(|(at, _)| at);
        function.calls.iter().copied().chain(by_pointer).collect()
    }

    /// Where a path from `place` is in `function`, if it may go there.
    fn step(&self, place: Place, function: usize) -> Option<Place> {
        let name = &self.functions[function].name;
        let panics = PANICS.iter().any(|part| name.contains(part));
        let texts = place.texts + u8::from(name == WRITES);
        let panic = match (place.panic, panics) {
            (Panic::MayCome | Panic::Comes, true) => Panic::Comes,
            (Panic::MayCome, false) => Panic::MayCome,
            (Panic::Comes | Panic::Came, false) => Panic::Came,
            (Panic::Came, true) => return None,
        };
        (texts <= NESTED).then_some(Place { function, texts, panic })
    }
}

impl Function {
    fn called(symbol: &str) -> Self {
        let name = addr2line::demangle_auto(symbol.into(), None).into_owned();
        Self { name, frame: 0, calls: BTreeSet::new(), by_pointer: false }
    }
}

/// Whether a function's name has `part` in it, or, for one of assembly's, is `part`.
fn is_called(name: &str, part: &str) -> bool {
    if part.contains(':') { name.contains(part) } else { name == part }
}

/// Which function has this address.
fn function_at(starts: &[u64], at: u64) -> Option<usize> {
    starts.partition_point(|start| *start <= at).checked_sub(1)
}

/// Bytes by which an instruction moves SP down (Arm ARM C6.2: STP, STR, pre-index; SUB, immediate).
fn pushed(word: u32) -> u64 {
    const SP: u32 = 31;
    let base = word >> 5 & 31;
    let signed = |value: u32, bits: u32| ((value << (32 - bits)) as i32 >> (32 - bits)).unsigned_abs().into();
    match word {
        _ if base != SP => 0,
        // STP Xt1, Xt2, [SP, #imm7 * 8]!, with a negative one.
        _ if word >> 22 == 0b10_1010_0110 && word >> 21 & 1 == 1 => 8 * signed(word >> 15 & 0x7f, 7),
        // STR Xt, [SP, #imm9]!, the same.
        _ if word >> 21 == 0b111_1100_0000 && word >> 10 & 3 == 3 && word >> 20 & 1 == 1 => {
            signed(word >> 12 & 0x1ff, 9)
        }
        // SUB SP, SP, #imm12, LSL #12 or not.
        _ if word >> 23 == 0b1_1010_0010 && word & 31 == SP => {
            u64::from(word >> 10 & 0xfff) << if word >> 22 & 1 == 1 { 12 } else { 0 }
        }
        _ => 0,
    }
}

/// Where an instruction at `at` goes by itself, and whether it comes back (Arm ARM C6.2: BL, B, B.cond, CBZ, TBZ).
fn jump(word: u32, at: u64) -> Option<(u64, bool)> {
    let to =
        |value: u32, bits: u32| at.wrapping_add_signed(i64::from((value << (32 - bits)) as i32 >> (32 - bits)) * 4);
    match word >> 24 {
        0x94..0x98 => Some((to(word, 26), true)),
        0x14..0x18 => Some((to(word, 26), false)),
        0x54 | 0x34 | 0x35 | 0xb4 | 0xb5 => Some((to(word >> 5, 19), false)),
        0x36 | 0x37 | 0xb6 | 0xb7 => Some((to(word >> 5, 14), false)),
        _ => None,
    }
}

/// BLR.
fn calls_by_pointer(word: u32) -> bool {
    word & 0xffff_fc1f == 0xd63f_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_stack_pointer_down_is_counted() {
        for (word, bytes) in [
            (0xa9bf_7bfd, 16),   // stp x29, x30, [sp, #-16]!
            (0xa9b8_7bfd, 128),  // stp x29, x30, [sp, #-128]!
            (0xf81f_0ffe, 16),   // str x30, [sp, #-16]!
            (0xd104_03ff, 256),  // sub sp, sp, #0x100
            (0xd140_07ff, 4096), // sub sp, sp, #0x1, lsl #12
            (0xa9bf_0440, 0),    // stp x0, x1, [x2, #-16]!
            (0xa900_7bfd, 0),    // stp x29, x30, [sp]
            (0xa8c1_7bfd, 0),    // ldp x29, x30, [sp], #16
            (0x9104_03ff, 0),    // add sp, sp, #0x100
            (0xd104_03e0, 0),    // sub x0, sp, #0x100
            (0xf841_0ffe, 0),    // ldr x30, [sp, #16]!
        ] {
            assert_eq!(pushed(word), bytes, "{word:#x}");
        }
    }

    #[test]
    fn jumps_are_told_from_calls() {
        const AT: u64 = 0x1000;
        for (word, to) in [
            (0x9400_0002, Some((AT + 8, true))),  // bl .+8
            (0x97ff_ffff, Some((AT - 4, true))),  // bl .-4
            (0x1400_0002, Some((AT + 8, false))), // b .+8
            (0x5400_0040, Some((AT + 8, false))), // b.eq .+8
            (0xb500_0040, Some((AT + 8, false))), // cbnz x0, .+8
            (0x3707_ffe0, Some((AT - 4, false))), // tbnz w0, #0, .-4
            (0xd63f_0120, None),                  // blr x9
            (0xd65f_03c0, None),                  // ret
        ] {
            assert_eq!(jump(word, AT), to, "{word:#x}");
        }
        assert!(calls_by_pointer(0xd63f_0120) && !calls_by_pointer(0xd61f_0120));
    }
}
