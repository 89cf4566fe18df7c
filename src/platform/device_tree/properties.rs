//! The properties of a node that is being copied, read ahead: what the editor must know before it writes.
#![forbid(unsafe_code)]

use super::binding::{self, Role};
use super::blob::{Token, Tokens, until_nul};
use super::bus::Cells;
use super::error::Reason;

/// The properties of a node that was just begun, read ahead of the copy.
pub(super) struct Properties<'x> {
    pub(super) strings: &'x [u8],
    pub(super) tokens: Tokens<'x>,
}

/// What tells a node's kind.
pub(super) struct Facts<'x> {
    pub(super) role: Role,
    pub(super) device_type: &'x [u8],
    pub(super) enabled: bool,
    /// Whether it names the SMMU that it stands behind (`iommus`).
    pub(super) behind_smmu: bool,
    pub(super) cells: Cells,
}

impl<'x> Properties<'x> {
    /// Name and value of each; `tokens` stands behind the last in the end.
    fn iter(&self, tokens: &mut Tokens<'x>) -> impl Iterator<Item = (&'x [u8], &'x [u8])> {
        core::iter::from_fn(move || {
            let before = tokens.clone();
            match tokens.next() {
                Ok(Token::Prop { name_offset, value }) => Some((property_name(self.strings, name_offset), value)),
                _ => {
                    *tokens = before;
                    None
                }
            }
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<&'x [u8]> {
        let [value] = binding::select(self.iter(&mut self.tokens.clone()), [name]);
        value
    }

    /// What tells the node's kind, and where the tokens behind its properties start.
    pub(super) fn facts(&self) -> (Facts<'x>, Tokens<'x>) {
        let mut behind = self.tokens.clone();
        let names = ["compatible", "status", "device_type", "iommus", "#address-cells", "#size-cells"];
        let [compatible, status, device_type, iommus, address, size] = binding::select(self.iter(&mut behind), names);
        let facts = Facts {
            role: compatible.map_or(Role::Other, Role::of),
            device_type: device_type.unwrap_or_default(),
            enabled: status.is_none_or(binding::is_okay),
            behind_smmu: iommus.is_some(),
            cells: Cells::of(address, size),
        };
        (facts, behind)
    }
}

/// A checked property name of `strings`.
pub(super) fn property_name(strings: &[u8], offset: u32) -> &[u8] {
    strings.get(offset as usize..).and_then(until_nul).unwrap_or_default()
}

/// Reads on to behind the end of the node that was just begun.
pub(super) fn skip_node(tokens: &mut Tokens) -> Result<(), Reason> {
    let mut open = 1;
    while open > 0 {
        match tokens.next()? {
            Token::Begin { .. } => open += 1,
            Token::End => open -= 1,
            Token::Done => return Err(Reason::StructureEndsEarly),
            Token::Prop { .. } | Token::Nop => {}
        }
    }
    Ok(())
}
