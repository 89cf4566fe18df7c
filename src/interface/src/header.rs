//! The table as a C header, for `kserv/linux`. A test compares it with the file in the tree.

use std::fmt::Write;
use std::string::String;

use core::mem::offset_of;

use crate::boot::{MANIFEST_MAGIC, Manifest, OLD_MANIFEST_MAGIC};
use crate::calls::{
    CallError, HostCall, INTERFACE_VERSION, MAP_READ_ONLY, MAX_IMAGES, MAX_PAGES, MAX_RUNS, MAX_VCPUS, MAX_VMS,
    VM_ORDINARY, VM_PROTECTED,
};
use crate::mailbox::{
    DIRECT_KICK, DIRECT_KICK_SGI_SHIFT, DIRECT_SGI_PRIORITY_SHIFT, DIRECT_SGIS, DIRECT_TIMER,
    DIRECT_TIMER_PRIORITY_SHIFT, ENTRY_INJECT_ABORT, ENTRY_KEEP_REGISTERS, ENTRY_TIMER_UNMASK, ENTRY_VFIQ, ENTRY_VIRQ,
    ExitReason, MAX_LIST_REGISTERS, Mailbox, START_PSTATE,
};

/// The header's text.
pub fn text() -> String {
    let mut out = String::from(
        "/* SPDX-License-Identifier: MIT OR Apache-2.0 */\n/* Made from src/interface by `scripts/header`; do not edit. */\n\
         #ifndef COREVISOR_H\n#define COREVISOR_H\n\n",
    );
    let mut define = |name: &str, value: u64| {
        let _ = writeln!(out, "#define CV_{name} {value:#x}ULL");
    };
    define("INTERFACE_VERSION", INTERFACE_VERSION);
    define("MAX_PAGES", MAX_PAGES);
    define("MAX_RUNS", MAX_RUNS as u64);
    define("MAX_VMS", MAX_VMS);
    define("MAX_VCPUS", MAX_VCPUS);
    define("MAX_IMAGES", MAX_IMAGES);
    define("MAX_LIST_REGISTERS", MAX_LIST_REGISTERS as u64);
    define("VM_ORDINARY", VM_ORDINARY);
    define("VM_PROTECTED", VM_PROTECTED);
    define("MAP_READ_ONLY", MAP_READ_ONLY);
    define("START_PSTATE", START_PSTATE);
    define("MANIFEST_MAGIC", MANIFEST_MAGIC);
    define("OLD_MANIFEST_MAGIC", OLD_MANIFEST_MAGIC);
    define("MANIFEST_SIZE", size_of::<Manifest>() as u64);
    define("ENTRY_VIRQ", ENTRY_VIRQ);
    define("ENTRY_VFIQ", ENTRY_VFIQ);
    define("ENTRY_INJECT_ABORT", ENTRY_INJECT_ABORT);
    define("ENTRY_TIMER_UNMASK", ENTRY_TIMER_UNMASK);
    define("ENTRY_KEEP_REGISTERS", ENTRY_KEEP_REGISTERS);
    define("DIRECT_SGIS", DIRECT_SGIS);
    define("DIRECT_SGI_PRIORITY_SHIFT", DIRECT_SGI_PRIORITY_SHIFT.into());
    define("DIRECT_TIMER", DIRECT_TIMER);
    define("DIRECT_KICK", DIRECT_KICK);
    define("DIRECT_KICK_SGI_SHIFT", DIRECT_KICK_SGI_SHIFT.into());
    define("DIRECT_TIMER_PRIORITY_SHIFT", DIRECT_TIMER_PRIORITY_SHIFT.into());
    out.push_str("\n/* Offsets in the mailbox page; every field is a little-endian 64-bit word, x and lr are arrays of them. */\n");
    for (name, offset) in mailbox() {
        let _ = writeln!(out, "#define CV_MAILBOX_{} {offset:#x}", name.to_ascii_uppercase());
    }
    for call in HostCall::ALL {
        let arguments = call.arguments().join(", ");
        let _ = write!(out, "\n/* ({arguments})\n");
        for line in call.doc().lines() {
            let _ = writeln!(out, " *{line}");
        }
        let _ = writeln!(out, " */\n#define CV_CALL_{} {:#x}ULL", upper(call.name()), call.function());
    }
    out.push('\n');
    for error in CallError::ALL {
        let _ = writeln!(out, "#define CV_ERR_{} ({})", upper(&std::format!("{error:?}")), *error as i64);
    }
    out.push('\n');
    for reason in ExitReason::ALL {
        let _ = writeln!(out, "#define CV_EXIT_{} {}", upper(&std::format!("{reason:?}")), reason as u64);
    }
    out.push_str("\n#endif\n");
    out
}

/// The mailbox's fields.
fn mailbox() -> [(&'static str, usize); 19] {
    macro_rules! offsets {
        ($($field:ident)*) => { [$((stringify!($field), offset_of!(Mailbox, $field))),*] };
    }
    offsets! {
        entry_flags pc pstate x0 x esr ipa lr_count lr vgic_hcr vgic_vmcr vgic_misr cntv_ctl cntv_cval cntvoff exits powered
        direct sgis
    }
}

/// `CoreVersion` to `CORE_VERSION`.
fn upper(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_field_of_the_mailbox_is_named() {
        let fields = super::mailbox();
        assert!(fields.windows(2).all(|two| two[0].1 < two[1].1));
        // Single words but for the two arrays.
        let words = fields.len() - 2 + 32 + super::MAX_LIST_REGISTERS;
        assert_eq!(words, super::Mailbox::WORDS);
    }

    #[test]
    fn a_name_becomes_a_macro() {
        assert_eq!(super::upper("MmioRead"), "MMIO_READ");
        assert!(super::text().contains("#define CV_CALL_VCPU_RUN 0xc600801bULL"));
    }
}
