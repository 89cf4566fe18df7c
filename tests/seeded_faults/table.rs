//! `docs/kill-table.md`: written from what was measured, and read again.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use super::faults::Fault;
use super::runner::Outcome;

/// Most names of tests in a row.
const MOST_NAMES: usize = 3;
/// How the row of a fault begins that nothing can notice.
const SURVIVES: &str = "survives: ";
/// The row of one of which nothing is known.
const UNKNOWN: &str = "not planted yet";

/// A row of the table that is there.
pub struct Row {
    pub name: String,
    /// The test program, empty if none.
    pub by: String,
    pub tests: Vec<String>,
    /// What the last column says.
    cell: String,
}

/// The number of the layer that a file is of, as its first line or that of the module above it says.
fn layer(root: &Path, file: &str) -> String {
    let mut path = Path::new(file).to_owned();
    loop {
        for file in [path.with_extension("rs"), path.join("mod.rs")] {
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            let first = text.lines().next().unwrap_or_default();
            let rest = first.strip_prefix("//! Layer").map(|rest| rest.trim_start_matches('s').trim_start());
            if let Some(rest) = rest {
                return rest.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
            }
        }
        if !path.pop() {
            return "-".into();
        }
    }
}

/// What the table says of an outcome.
fn cell(fault: &Fault, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Caught { by, how } => {
            let quoted = |name: &String| if name.starts_with('(') { name.clone() } else { format!("`{name}`") };
            let names: Vec<_> = how.iter().take(MOST_NAMES).map(quoted).collect();
            let more = how.len().saturating_sub(MOST_NAMES);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("**{by}**: {}{more}", names.join(", "))
        }
        Outcome::Survived | Outcome::Unbuilt(_) => {
            format!("{SURVIVES}{}", fault.survives.unwrap_or("nobody knows why"))
        }
    }
}

/// The whole file. Of a fault of which nothing is known it says what `earlier`, the file that is there, says.
pub fn text(root: &Path, rows: &[(&Fault, Option<Outcome>)], earlier: &str) -> String {
    let said = |fault: &Fault| self::rows(earlier).find(|row| row.name == fault.name).map(|row| row.cell);
    let cells: Vec<String> = rows
        .iter()
        .map(|(fault, outcome)| match outcome {
            Some(outcome) => cell(fault, outcome),
            None => said(fault).unwrap_or_else(|| UNKNOWN.into()),
        })
        .collect();
    let count = |start| cells.iter().filter(|cell| cell.starts_with(start)).count();
    let (caught, survive, unknown) = (count("**"), count(SURVIVES), count(UNKNOWN));
    let unknown = if unknown == 0 { String::new() } else { format!(" {unknown} were not planted yet.") };
    let mut text = format!(
        "# Kill table\n\n\
         For whoever wants to know whether the tests would notice. Written by `scripts/kill-table`: each fault was planted in a copy of the\n\
         sources (`tests/seeded_faults/faults` has the texts), and the tests of the development machine were run, those first that are likely to\n\
         notice, until a program of them failed. Named is that program, and which of its tests failed; others may notice too. A row is of its day:\n\
         `cargo test --test seeded_faults -- --nocapture` counts those whose file or tests have changed since.\n\n\
         {} faults: {caught} caught; {survive} not, and the row says why.{unknown}\n\n\
         | fault | layer | caught by |\n|---|---|---|\n",
        rows.len(),
    );
    for ((fault, _), cell) in rows.iter().zip(&cells) {
        text += &format!("| {} | {} | {cell} |\n", fault.name, layer(root, fault.file));
    }
    text
}

/// The rows of such a file.
pub fn rows(text: &str) -> impl Iterator<Item = Row> {
    let lines = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| fault |"));
    lines.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let last = cells.last().copied().unwrap_or_default();
        let by = last.strip_prefix("**").and_then(|rest| rest.split_once("**")).map_or("", |(by, _)| by);
        let tests = if by.is_empty() { vec![] } else { last.split('`').skip(1).step_by(2).map(String::from).collect() };
        Row { name: cells[0].into(), by: by.into(), tests, cell: last.into() }
    })
}
