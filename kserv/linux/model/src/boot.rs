//! What a protected VM starts with, for C: [`kserv_model::boot_info`]. Not under a VM's lock: the callback may sleep.
//!
//! Each function gives 0, or the address of a text that says what is wrong, which ends with a zero byte and stays.

use core::ffi::{c_char, c_void};
use core::ptr;

use kserv_model::boot_info::{BootInfo, Unknown};

/// Copies `size` bytes of the VM's memory at `gpa` to `to`; `false` if there is none.
pub type ReadMemory = unsafe extern "C" fn(context: *mut c_void, gpa: u64, to: *mut c_void, size: usize) -> bool;

fn told(result: Result<BootInfo, Unknown>, boot: &mut BootInfo) -> *const c_char {
    match result {
        Ok(info) => {
            *boot = info;
            ptr::null()
        }
        Err(error) => error.text().as_ptr().cast(),
    }
}

/// From the registers of vCPU 0 and the VM's memory.
///
/// # Safety
/// `read` may be called with `context` and writes no more than it is asked for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_boot_infer(
    read: ReadMemory,
    context: *mut c_void,
    pc: u64,
    x0: u64,
    boot: &mut BootInfo,
) -> *const c_char {
    let mut copy = |gpa: u64, to: &mut [u8]| {
        // SAFETY: the caller's promise; `to` is as long as it says.
        unsafe { read(context, gpa, to.as_mut_ptr().cast(), to.len()) }
    };
    told(BootInfo::infer(&mut copy, pc, x0), boot)
}

/// From a manifest.
///
/// # Safety
/// `manifest` points to `size` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kserv_boot_of_manifest(
    manifest: *const u8,
    size: usize,
    boot: &mut BootInfo,
) -> *const c_char {
    // SAFETY: the caller's promise.
    let bytes = unsafe { core::slice::from_raw_parts(manifest, size) };
    told(BootInfo::of_manifest(bytes), boot)
}

/// How a manifest differs from what was found.
#[unsafe(no_mangle)]
pub extern "C" fn kserv_boot_explain(found: &BootInfo, manifest: &BootInfo) -> *const c_char {
    found.explain(manifest).map_or_else(|error| error.text().as_ptr().cast(), |()| ptr::null())
}
