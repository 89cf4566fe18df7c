//! Figures, their budgets, and how they are shown.

use serde_json::{Value, json};
use std::fmt::{self, Write};

/// What a figure may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// This or less.
    AtMost(f64),
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    id: String,
    what: String,
    value: f64,
    /// The same without the core.
    without: Option<f64>,
    digits: usize,
    budget: Option<Budget>,
}

impl Row {
    /// A figure with two digits after the point.
    pub fn new(id: &str, what: &str, value: f64) -> Self {
        Self { id: id.to_owned(), what: what.to_owned(), value, without: None, digits: 2, budget: None }
    }

    /// A whole number.
    pub fn count(id: &str, what: &str, value: u64) -> Self {
        Self { digits: 0, ..Self::new(id, what, value as f64) }
    }

    /// Two whole numbers: with the core and without it.
    pub fn compared(id: &str, what: &str, with: u64, without: u64) -> Self {
        Self::count(id, what, with).beside(without as f64)
    }

    /// The same with what it is without the core.
    #[must_use]
    pub fn beside(self, without: f64) -> Self {
        Self { without: Some(without), ..self }
    }

    /// A small number.
    pub fn percent(id: &str, what: &str, value: f64) -> Self {
        Self { digits: 4, ..Self::new(id, what, value) }
    }

    /// The same, with a budget.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Its name for programs.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn is_met(&self) -> Option<bool> {
        self.budget.map(|Budget::AtMost(most)| self.value <= most)
    }
}

#[derive(Clone, Debug)]
enum Line {
    Heading(String),
    Row(Row),
}

/// All figures, in the order to show them.
#[derive(Clone, Debug)]
pub struct Table {
    about: Value,
    lines: Vec<Line>,
}

impl Table {
    /// An empty table; `about` says what was measured.
    pub fn new(about: Value) -> Self {
        Self { about, lines: Vec::new() }
    }

    /// The figures that follow belong to this.
    pub fn heading(&mut self, text: &str) {
        self.lines.push(Line::Heading(text.to_owned()));
    }

    /// One more figure.
    pub fn push(&mut self, row: Row) {
        self.lines.push(Line::Row(row));
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.lines.iter().filter_map(|line| match line {
            Line::Row(row) => Some(row),
            Line::Heading(_) => None,
        })
    }

    /// The figures that miss their budgets: what and by how much.
    pub fn missed(&self) -> Vec<String> {
        let missed = self.rows().filter(|row| row.is_met() == Some(false));
        missed.map(|row| format!("{}: {}", row.what.trim(), budget_text(row))).collect()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let figures: serde_json::Map<_, _> = self
            .rows()
            .map(|row| {
                let mut figure = json!({"what": row.what.trim(), "value": row.value});
                if let Some(without) = row.without {
                    figure["without_core"] = json!(without);
                }
                if let (Some(Budget::AtMost(most)), Some(met)) = (row.budget, row.is_met()) {
                    figure["at_most"] = json!(most);
                    figure["met"] = json!(met);
                }
                (row.id.clone(), figure)
            })
            .collect();
        json!({"about": self.about, "figures": figures})
    }
}

/// The figure with thousands apart.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index != 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 && text.chars().any(|c| ('1'..='9').contains(&c)) { "-" } else { "" };
    format!("{sign}{grouped}{rest}")
}

fn budget_text(row: &Row) -> String {
    let (Some(Budget::AtMost(most)), Some(met)) = (row.budget, row.is_met()) else { return String::new() };
    let digits = if most < 1.0 { 2 } else { 0 };
    format!("at most {}: {}", number(most, digits), if met { "met" } else { "MISSED" })
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.rows().map(|row| row.what.chars().count()).max().unwrap_or(0).min(78);
        for line in &self.lines {
            match line {
                Line::Heading(text) => writeln!(f, "\n{text}")?,
                Line::Row(row) => {
                    let mut text = format!("  {:widest$}  {:>14}", row.what, number(row.value, row.digits));
                    if let Some(without) = row.without {
                        let _ = write!(text, "  {:>14}  {:.6}", number(without, row.digits), row.value / without);
                    }
                    if row.budget.is_some() {
                        let _ = write!(text, "  {}", budget_text(row));
                    }
                    writeln!(f, "{text}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(number(0.0, 0), "0");
        assert_eq!(number(1_234_567.0, 0), "1,234,567");
        assert_eq!(number(-123.456, 2), "-123.46");
        assert_eq!(number(-0.00001, 4), "0.0000");
    }

    #[test]
    fn a_missed_budget_is_told_on_paper_and_to_programs() {
        let mut table = Table::new(json!({}));
        table.push(Row::count("a", "first", 81).budget(Budget::AtMost(80.0)));
        table.push(Row::count("b", "second", 80).budget(Budget::AtMost(80.0)));
        table.push(Row::compared("c", "third", 3, 2));
        assert_eq!(table.missed(), ["first: at most 80: MISSED"]);
        let json = table.json();
        assert_eq!((&json["figures"]["a"]["met"], &json["figures"]["b"]["met"]), (&json!(false), &json!(true)));
        assert!(table.to_string().contains("1.500000"));
    }
}
