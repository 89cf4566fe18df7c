//! What is used here of QEMU's `include/qemu/qemu-plugin.h`, API version 3 (QEMU 9.1 and newer).

use std::ffi::{c_int, c_uint, c_void};

/// The version that this file declares; QEMU refuses a plugin whose version it does not serve.
pub const VERSION: c_int = 3;

/// `QEMU_PLUGIN_CB_NO_REGS`.
pub const CB_NO_REGS: c_int = 0;

/// This plugin, as QEMU knows it.
pub type Id = u64;

/// A block of guest code under translation.
#[repr(C)]
pub struct Block {
    _private: [u8; 0],
}

/// A guest instruction under translation.
#[repr(C)]
pub struct Insn {
    _private: [u8; 0],
}

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: extern "C" fn(Id, *mut Block));
    pub fn qemu_plugin_register_atexit_cb(id: Id, callback: extern "C" fn(Id, *mut c_void), data: *mut c_void);
    pub fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Insn;
    pub fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    pub fn qemu_plugin_insn_data(insn: *const Insn, to: *mut c_void, size: usize) -> usize;
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        callback: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
}
