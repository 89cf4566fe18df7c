//! Shows a page to the host and takes it back, again and again: what stands in it is public while it is shown, and secret while it is not, and nobody else may
//! change it then. In the end the page is shown with the verdict: only if all was as it should be.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare {
    use corevisor_guests::{arch, calls, fail, tree::Tree};

    /// By which the host recognises a secret (kserv/mini/src/checks/victim.rs).
    const SECRET: u64 = 0x5ec2_e75e_5ec2_e75e;
    const PUBLIC: u64 = u64::from_le_bytes(*b"PUBLIC-0");
    const VERDICT: u64 = u64::from_le_bytes(*b"SHARED-0");
    /// Words of the page that are used: one in 64 bytes.
    const WORDS: u64 = 64;
    /// How often the words are looked at while they are secret.
    const LOOKS: u64 = 20;

    fn all(mut act: impl FnMut(u64)) {
        (0..WORDS).for_each(|n| act(arch::SHARED + 64 * n));
    }

    fn fill(word: u64) {
        // SAFETY: the page is for sharing only.
        all(|at| unsafe { arch::write64(at, word) });
    }

    pub fn run(_vcpu: u64, dtb: u64) -> ! {
        let rounds = Tree::at(dtb).and_then(|tree| tree.number("rounds=")).unwrap_or(300);
        for round in 0..rounds {
            fill(PUBLIC);
            let shared = calls::share(arch::SHARED);
            if shared != calls::SUCCESS {
                fail!("round {round}: share gives {shared:#x}");
            }
            all(|at| _ = arch::read64(at));
            let taken = calls::unshare(arch::SHARED);
            if taken != calls::SUCCESS {
                fail!("round {round}: unshare gives {taken:#x}");
            }
            fill(SECRET);
            for _ in 0..LOOKS {
                all(|at| {
                    let found = arch::read64(at);
                    if found != SECRET {
                        fail!("round {round}: a secret at {at:#x} became {found:#x}");
                    }
                });
            }
        }
        fill(PUBLIC);
        // SAFETY: the page is for sharing only.
        unsafe {
            arch::write64(arch::SHARED, VERDICT);
            arch::write64(arch::SHARED + 8, rounds);
        }
        calls::share(arch::SHARED);
        calls::system_off()
    }
}

#[cfg(target_os = "none")]
use bare::run;
corevisor_guests::guest!("sharer", run);
