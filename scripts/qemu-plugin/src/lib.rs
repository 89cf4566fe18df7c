//! A plugin for QEMU's TCG: counts the instructions that the machine executes, those of the core each by itself.
//!
//! An instruction is the core's if its address lies in the core's block; the core runs identity mapped, and the host
//! has nothing at these addresses. Counters are read at marks: the first is the host's first instruction, the others are
//! set by the host itself, which executes [`MARK`]. Nothing of the machine changes by it.
//!
//! QEMU calls a function here for each instruction: its inline counters are faster, but crash QEMU 10.0 with `-icount` and
//! more than one CPU. The machine has to run with `-icount`, where one thread executes all of its CPUs.
//!
//! `-plugin target/debug/libcorevisor_qemu_plugin.so,base=ADDRESS,out=FILE[,host=ADDRESS]`; the file's lines are
//! `mark NUMBER ALL CORE` (ALL and CORE: instructions executed until then by all CPUs, and in the core), then
//! `at OFFSET COUNT...`: how often the core's instruction at this offset was executed, until each mark. With `host`, where a host lies
//! that is identity mapped too (the mini host), `host OFFSET COUNT...`: the same for the 2 MiB from there on.
//! `scripts/tool/src/bench/profile.rs` reads them.

mod api;

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    fmt::Write,
    path::PathBuf,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// `movz xzr, #(0xcb00 + n)`, which does nothing: the host's mark number n, 0 to 255.
const MARK: u32 = 0xd299_601f;
const MARK_NUMBER: u32 = 0xff << 5;
/// The mark of the host's first instruction.
const HOST_STARTS: u32 = 256;
/// The last mark: QEMU's end.
const END: u32 = 257;

/// The core's block: each instruction in it has a counter.
const BLOCK: u64 = 2 << 20;
const COUNTERS: usize = (BLOCK / 4) as usize;
/// No host is counted by itself: no instruction is from there on.
const NO_HOST: u64 = u64::MAX - BLOCK;

/// QEMU reads this before anything else.
#[unsafe(no_mangle)]
#[used]
#[allow(non_upper_case_globals, reason = "the name is QEMU's")]
pub static qemu_plugin_version: c_int = api::VERSION;

struct Plugin {
    base: u64,
    host: u64,
    out: PathBuf,
    /// All instructions, those of the core, then each of the core's, then each of the host's.
    counters: Box<[AtomicU64]>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    core_ran: bool,
    host_ran: bool,
    marks: Vec<Snapshot>,
}

struct Snapshot {
    number: u32,
    all: u64,
    core: u64,
    /// By instruction of the core, then of the host.
    each: Vec<u64>,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

impl Plugin {
    fn add_one(&self, index: usize) {
        // One thread executes all CPUs, so load and store need not be one access.
        let counter = &self.counters[index];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn read(&self, index: usize) -> u64 {
        self.counters[index].load(Ordering::Relaxed)
    }

    fn mark(&self, state: &mut State, number: u32) {
        let each = (2..2 + 2 * COUNTERS).map(|index| self.read(index)).collect();
        state.marks.push(Snapshot { number, all: self.read(0), core: self.read(1), each });
    }

    fn write(&self, state: &State) -> std::io::Result<()> {
        let mut text = String::new();
        for mark in &state.marks {
            let _ = writeln!(text, "mark {} {} {}", mark.number, mark.all, mark.core);
        }
        for index in 0..2 * COUNTERS {
            if state.marks.iter().any(|mark| mark.each[index] != 0) {
                let _ = write!(text, "{} {}", ["at", "host"][index / COUNTERS], index % COUNTERS * 4);
                for mark in &state.marks {
                    let _ = write!(text, " {}", mark.each[index]);
                }
                text.push('\n');
            }
        }
        std::fs::write(&self.out, text)
    }
}

extern "C" fn translated(_: api::Id, block: *mut api::Block) {
    let Some(plugin) = PLUGIN.get() else { return };
    // SAFETY: `block` is QEMU's for the time of this call, its instructions are numbered from 0, and each has 4 bytes.
    unsafe {
        for index in 0..api::qemu_plugin_tb_n_insns(block) {
            let insn = api::qemu_plugin_tb_get_insn(block, index);
            let address = api::qemu_plugin_insn_vaddr(insn);
            let offset = address.wrapping_sub(plugin.base);
            if index == 0 {
                plugin.entered(offset < BLOCK);
            }
            let mut code = [0_u8; 4];
            api::qemu_plugin_insn_data(insn, code.as_mut_ptr().cast(), code.len());
            let code = u32::from_le_bytes(code);
            if code & !MARK_NUMBER == MARK {
                // Before the mark itself is counted, which so belongs to what follows it.
                let number = (code & MARK_NUMBER) >> 5;
                api::qemu_plugin_register_vcpu_insn_exec_cb(
                    insn,
                    marked,
                    api::CB_NO_REGS,
                    number as usize as *mut c_void,
                );
            }
            // What the instruction is called in `executed`: one more than its index among the core's and the host's, 0 for all others.
            let which = match (offset, address.wrapping_sub(plugin.host)) {
                (0..BLOCK, _) => 1 + (offset / 4) as usize,
                (_, offset @ 0..BLOCK) => 1 + COUNTERS + (offset / 4) as usize,
                _ => 0,
            };
            api::qemu_plugin_register_vcpu_insn_exec_cb(insn, executed, api::CB_NO_REGS, which as *mut c_void);
        }
    }
}

extern "C" fn executed(_cpu: c_uint, which: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    plugin.add_one(0);
    let which = which as usize;
    if which != 0 {
        if which <= COUNTERS {
            plugin.add_one(1);
        }
        plugin.add_one(1 + which);
    }
}

impl Plugin {
    /// A block is translated, to be executed at once: the first of the host after the core is the host's start.
    fn entered(&self, core: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.core_ran |= core;
        if !core && state.core_ran && !state.host_ran {
            state.host_ran = true;
            self.mark(&mut state, HOST_STARTS);
        }
    }
}

extern "C" fn marked(_cpu: c_uint, number: *mut c_void) {
    if let Some(plugin) = PLUGIN.get() {
        let mut state = plugin.state.lock().unwrap_or_else(PoisonError::into_inner);
        plugin.mark(&mut state, number as usize as u32);
    }
}

extern "C" fn ended(_: api::Id, _: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    let mut state = plugin.state.lock().unwrap_or_else(PoisonError::into_inner);
    plugin.mark(&mut state, END);
    if let Err(error) = plugin.write(&state) {
        eprintln!("corevisor-qemu-plugin: cannot write {}: {error}", plugin.out.display());
    }
}

/// The number that `text` writes, decimal or with 0x.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Called by QEMU when it has loaded the plugin; anything but 0 ends QEMU.
///
/// # Safety
/// `argv` points to `argc` strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: api::Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let (mut base, mut host, mut out) = (None, NO_HOST, None);
    for index in 0..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: the caller's promise.
        let argument = unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy();
        match argument.split_once('=') {
            Some(("base", value)) => base = number(value),
            Some(("host", value)) => host = number(value).unwrap_or(NO_HOST),
            Some(("out", value)) => out = Some(PathBuf::from(value)),
            _ => {}
        }
    }
    let (Some(base), Some(out)) = (base, out) else {
        eprintln!("corevisor-qemu-plugin: base=ADDRESS and out=FILE are wanted");
        return 1;
    };
    let counters = (0..2 + 2 * COUNTERS).map(|_| AtomicU64::new(0)).collect();
    if PLUGIN.set(Plugin { base, host, out, counters, state: Mutex::new(State::default()) }).is_err() {
        return 1;
    }
    // SAFETY: called while QEMU installs this plugin, with its own number.
    unsafe {
        api::qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        api::qemu_plugin_register_atexit_cb(id, ended, std::ptr::null_mut());
    }
    0
}
