//! Trees damaged at random: a named error or a clean run through everything, never a panic or a hang.
#![forbid(unsafe_code)]

use super::*;

/// A repeatable generator (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit.max(1)
    }

    /// Changes a few bytes or words of `blob`.
    fn damage(&mut self, blob: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(blob.len());
            let word = at & !3;
            match self.below(8) {
                0 => blob[at] = self.below(256) as u8,
                1 => blob[at] ^= 1 << self.below(8),
                2 => blob[at] = blob[at].wrapping_add(1),
                // Tokens, small and large numbers where words stand.
                3..=5 => {
                    let value = [0, 1, 2, 3, 4, 5, 9, 8, 16, 0x40, 0x7fff_ffff, u32::MAX, 0x8000_0000][self.below(13)];
                    blob.splice(word..(word + 4).min(blob.len()), value.to_be_bytes());
                }
                // A word from elsewhere.
                6 => {
                    let from = self.below(blob.len() - 4) & !3;
                    let to = word.min(blob.len() - 4);
                    blob.copy_within(from..from + 4, to);
                }
                _ => {
                    let field = self.below(10) * 4;
                    blob[field + 2 + self.below(2)] = self.below(256) as u8;
                }
            }
        }
    }
}

/// Everything the core does with a tree, and what must hold if it succeeds.
fn run(blob: &[u8]) -> Result<(), DeviceTreeError> {
    with_tree(blob, |tree, machine| {
        let core = [range(machine.ram[0].base().raw(), machine.ram[0].base().raw() + 0x1000)];
        assert!(machine.windows.iter().all(|window| machine.ram.iter().all(|bank| !bank.overlaps(*window))));
        let mut taken = machine.clone();
        taken.take_smmus()?;
        let gone = || machine.smmus.iter().map(|smmu| smmu.range).chain(machine.beside_smmus.iter().copied());
        assert!(gone().all(|range| taken.windows.iter().all(|window| !window.overlaps(range))));
        for smmus_taken in [false, true] {
            let initrd = Some(range(0x1000, 0x2000));
            let edits = HostEdits {
                core_memory: &core,
                initrd,
                bootargs: Some("x"),
                smmus_taken,
                gic_taken: smmus_taken,
                seed: Some([1; 32]),
                version: "0",
            };
            let mut out = vec![0; host_tree_size(tree, &edits)];
            let host = host_device_tree(tree, machine, &edits, &mut out)?;
            match described(host) {
                Ok(after) => {
                    assert!(after.ram.iter().all(|bank| !bank.overlaps(core[0])));
                    assert!(!smmus_taken || after.smmus.is_empty() && after.beside_smmus.is_empty());
                }
                Err(error) => assert_eq!(error.reason, Reason::NoMemory, "{error}"),
            }
        }
        Ok(())
    })?
}

fn fuzz(blob: &[u8], rounds: usize) {
    let mut random = Random(0x5eed);
    let mut fine = 0;
    for _ in 0..rounds {
        let mut damaged = blob.to_vec();
        random.damage(&mut damaged);
        fine += usize::from(run(&damaged).is_ok());
    }
    assert!((1..rounds).contains(&fine), "damage must sometimes matter and sometimes not: {fine} of {rounds}");
}

/// `COREVISOR_FUZZ=n` runs n times as many rounds.
fn rounds(usual: usize) -> usize {
    let factor = std::env::var("COREVISOR_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    usual * factor
}

#[test]
fn damaged_trees_of_qemu_are_refused_or_read_but_never_a_panic() {
    fuzz(dtb!("virt-numa-modules"), rounds(4000));
    fuzz(dtb!("virt-gicv2"), rounds(2000));
    fuzz(dtb!("virt-gicv3-smmu"), rounds(2000));
}

#[test]
fn damaged_trees_of_the_pi_are_refused_or_read_but_never_a_panic() {
    fuzz(dtb!("raspi4b-qemu"), rounds(800));
}

#[test]
fn noise_is_refused() {
    let mut random = Random(7);
    for _ in 0..2000 {
        let mut noise: Vec<u8> = (0..random.below(400)).map(|_| random.below(256) as u8).collect();
        assert!(run(&noise).is_err());
        let header = dtb!("virt-gicv2").get(..40.min(noise.len())).unwrap();
        noise[..header.len()].copy_from_slice(header);
        assert!(run(&noise).is_err());
    }
}
