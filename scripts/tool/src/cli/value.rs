//! Values of options: sizes and times.

use kserv_model::layout::{PAGE, RAM_BASE, RAM_END};
use std::time::Duration;

const SIZE: &str = "a size from 1M up, such as 512M or 4G";
/// More than QEMU's boards and the core's host can have.
const MOST: u64 = 1 << 40;
const ONE_M: u64 = 1 << 20;

/// A machine's memory, as QEMU takes it.
pub(super) fn memory_size(text: &str) -> Result<String, String> {
    match bytes(text) {
        Some(..ONE_M) => Err(SIZE.to_owned()),
        Some(..=MOST) => Ok(text.to_owned()),
        // So large that it has no number of bytes.
        None if !is_number(digits(text)) || shift(text).is_none() => Err(SIZE.to_owned()),
        _ => Err("1024G is the most".to_owned()),
    }
}

fn is_number(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// A VM's memory: pages, where the core lets a VM have some.
pub(super) fn vm_memory(text: &str) -> Result<String, String> {
    let most = RAM_END - RAM_BASE;
    let text = memory_size(text)?;
    match bytes(&text) {
        Some(size) if size > most => Err(format!("a VM has at most {}G", most >> 30)),
        Some(size) if size % PAGE != 0 => Err("a multiple of 4K is wanted".to_owned()),
        _ => Ok(text),
    }
}

/// What such a size is in bytes; without a letter it is MiB, as QEMU has it.
pub(super) fn bytes(size: &str) -> Option<u64> {
    let digits = digits(size);
    let number: u64 = if is_number(digits) { digits.parse().ok()? } else { return None };
    number.checked_mul(1 << shift(size)?)
}

fn digits(size: &str) -> &str {
    size.trim_end_matches(|letter: char| letter.is_ascii_alphabetic())
}

fn shift(size: &str) -> Option<u32> {
    Some(match size[digits(size).len()..].to_ascii_lowercase().as_str() {
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    })
}

/// A time limit.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let wanted = "a number of seconds above 0";
    let number: f64 = text.parse().map_err(|_| wanted)?;
    Duration::try_from_secs_f64(number).ok().filter(|limit| !limit.is_zero()).ok_or_else(|| wanted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_what_qemu_takes_it_for() {
        assert_eq!(bytes("512"), Some(512 << 20));
        assert_eq!((bytes("64K"), bytes("3g")), (Some(64 << 10), Some(3 << 30)));
        assert_eq!((bytes("99999999999999T"), bytes("+5M"), bytes("")), (None, None, None));
    }

    #[test]
    fn a_size_that_no_machine_has_is_refused() {
        for text in ["1", "1M", "1024k", "512M", "4G", "1T", "1024G"] {
            assert_eq!(memory_size(text).as_deref(), Ok(text));
        }
        for text in ["0", "0G", "1023K", "", "G", "-1M", "+5M", "2GG", "2X", "1.5G", "9é"] {
            assert_eq!(memory_size(text), Err(SIZE.to_owned()), "{text}");
        }
        for text in ["2T", "1025G", "99999999999999G", "99999999999999999999999"] {
            assert_eq!(memory_size(text), Err("1024G is the most".to_owned()), "{text}");
        }
    }

    #[test]
    fn a_vms_memory_ends_where_the_core_says() {
        assert!(vm_memory("255G").is_ok() && vm_memory("1M").is_ok());
        assert_eq!(vm_memory("256G"), Err("a VM has at most 255G".to_owned()));
        assert_eq!(vm_memory("1000G"), Err("a VM has at most 255G".to_owned()));
        assert_eq!(vm_memory("1025K"), Err("a multiple of 4K is wanted".to_owned()));
        assert_eq!(vm_memory("0"), Err(SIZE.to_owned()));
    }
}
