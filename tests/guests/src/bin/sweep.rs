//! Writes secrets into every system register that there may be, one encoding after the other, and leaves with all of them; the host looks for them in its own
//! (kserv/mini/src/checks/sweep.rs).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use core::arch::asm;
    use corevisor_guests::{arch, calls};

    /// By which the host recognises a secret (kserv/mini/src/checks/victim.rs).
    const SECRET: u64 = 0x5ec2_e75e_5ec2_e75e;
    const VERDICT: u64 = u64::from_le_bytes(*b"SWEPT--0");
    /// Where the one instruction is put, and RET behind it.
    const CODE: u64 = 0x4020_0000;
    const MSR: u32 = 0xd518_0000;
    const MRS: u32 = 0xd538_0000;
    const RET: u32 = 0xd65f_03c0;
    const LEAVES: u64 = 4;

    /// Those that this program lives by: SCTLR_EL1, CPACR_EL1, processor state, the interrupt controller and the vectors.
    fn is_vital(encoding: u32) -> bool {
        let (op1, crn, crm, op2) = (encoding >> 16 & 7, encoding >> 12 & 15, encoding >> 8 & 15, encoding >> 5 & 7);
        matches!((op1, crn, crm, op2), (0, 1, 0, 0 | 2 | 3) | (_, 4, 2 | 3, _) | (_, 12, _, _))
    }

    /// Does the instruction with x0 as its register: what x0 is then.
    fn execute(instruction: u32, value: u64) -> Result<u64, u64> {
        arch::write32(CODE, instruction);
        arch::write32(CODE + 4, RET);
        arch::attempt(|| {
            let result;
            // SAFETY: the code changes x0 only, and a system register that nothing here lives by.
            unsafe {
                asm!("dsb sy", "ic iallu", "dsb sy", "isb", "blr {}", in(reg) CODE, inout("x0") value => result, out("x30") _, options(nostack));
            }
            result
        })
    }

    pub fn run(_vcpu: u64, _dtb: u64) -> ! {
        let encodings = || {
            let fields = [0, 3].into_iter().flat_map(|op1: u32| (0..2048).map(move |rest: u32| op1 << 16 | rest << 5));
            fields.filter(|encoding| !is_vital(*encoding))
        };
        let mut written: u64 = 0;
        for encoding in encodings() {
            written += u64::from(execute(MSR | encoding, SECRET).is_ok());
        }
        let kept = encodings()
            .filter(|encoding| execute(MRS | encoding, 0).is_ok_and(|word| word as u32 >> 4 == SECRET as u32 >> 4));
        let kept = kept.count() as u64;
        for _ in 0..LEAVES {
            // CPU_SUSPEND: only it ends with an exit for WFI.
            calls::hvc(0xc400_0001, [0; 3]);
        }
        // SAFETY: the page is for sharing only.
        unsafe {
            arch::write64(arch::SHARED, VERDICT);
            arch::write64(arch::SHARED + 8, kept << 32 | written);
        }
        calls::share(arch::SHARED);
        calls::system_off()
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("sweep", run);
