//! Digests of pages: by the CPU's instructions for SHA-256 (FEAT_SHA256, boot/digest.S), where it has them; else by crate `sha2`, in general registers.
//!
//! The instructions use the SIMD registers, which are the calling host's. They are saved before (q0-q31 or, where there are such, all of z0-z31), and a host in streaming mode, which has no such
//! instructions, leaves it: as for a VM that uses FP (`fpsimd`), once a call, not once a page. At its end they are the host's again, and nothing of what was digested is in them.

#[cfg(feature = "test-hooks")]
pub mod target_tests;

use super::super::addr::Pfn;
use super::super::sha256::{PAGE_BLOCKS, ROUND_CONSTANTS, Sha256};
use super::super::{ForeignPage, PageDigester};
use super::sysreg::{self, ID_AA64ISAR0};
use super::{fpsimd, with_world};
use crate::platform::window;

unsafe extern "C" {
    fn sha256_blocks(state: *mut [u32; 8], blocks: *const u64, count: usize, constants: *const [u32; 64]);
}

/// See `Machine::digester`.
pub struct Digester {
    by_instructions: bool,
}

impl Digester {
    /// While the host runs: its registers are in place, and its CPTR_EL2 stands.
    pub fn start() -> Self {
        let by_instructions = sysreg::IdAa64isar0::get().read(ID_AA64ISAR0::SHA2) != 0 && !is_forgone();
        if by_instructions {
            with_world(fpsimd::take_from_host);
        }
        Self { by_instructions }
    }
}

impl PageDigester for Digester {
    fn is_fast(&self) -> bool {
        self.by_instructions
    }

    fn add(&mut self, digest: &mut Sha256, pfn: Pfn) {
        let page = window::visit(pfn);
        if self.by_instructions {
            // SAFETY: the CPU has the instructions, and its SIMD registers are the core's until `drop`. The blocks are those of the page that the window shows.
            digest.add_page_by(|state| unsafe {
                sha256_blocks(state, page.as_ptr(), PAGE_BLOCKS, &raw const ROUND_CONSTANTS);
            });
        } else {
            digest.add_page(|word| page.read(word));
        }
    }
}

impl Drop for Digester {
    fn drop(&mut self) {
        if self.by_instructions {
            with_world(fpsimd::restore_host);
        }
    }
}

fn is_forgone() -> bool {
    #[cfg(feature = "test-hooks")]
    return target_tests::is_forgone();
    #[cfg(not(feature = "test-hooks"))]
    false
}
