//! The table as a C header, for `kserv/linux`. A test compares it with the file in the tree.

use std::fmt::Write;
use std::string::String;

use crate::calls::{CallError, HostCall, INTERFACE_VERSION, MAX_IMAGES, MAX_PAGES, MAX_VCPUS, MAX_VMS};
use crate::mailbox::{ExitReason, MAX_LIST_REGISTERS};

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
    define("MAX_VMS", MAX_VMS);
    define("MAX_VCPUS", MAX_VCPUS);
    define("MAX_IMAGES", MAX_IMAGES);
    define("MAX_LIST_REGISTERS", MAX_LIST_REGISTERS as u64);
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
    fn a_name_becomes_a_macro() {
        assert_eq!(super::upper("MmioRead"), "MMIO_READ");
        assert!(super::text().contains("#define CV_CALL_VCPU_RUN 0xc600801bULL"));
    }
}
