//! Rust sources as far as the architecture tests read them: tokens without comments, strings and unit tests, and the paths in
//! them.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Word(String),
    PathSep,
    Mark(char),
}

/// The tokens of `text`. Comments, strings and character literals are left out; `'a` is a word.
pub fn tokens(text: &str) -> Vec<Token> {
    let c: Vec<char> = text.chars().collect();
    let at = |n: usize| c.get(n).copied().unwrap_or('\0');
    let (mut n, mut out) = (0, vec![]);
    while n < c.len() {
        match c[n] {
            '/' if at(n + 1) == '/' => {
                while n < c.len() && c[n] != '\n' {
                    n += 1;
                }
            }
            '/' if at(n + 1) == '*' => {
                while n < c.len() && !(c[n] == '*' && at(n + 1) == '/') {
                    n += 1;
                }
                n += 2;
            }
            'r' if at(n + 1) == '"' || at(n + 1) == '#' && at(n + 2) == '"' => {
                let hashes = usize::from(at(n + 1) == '#');
                n += 2 + hashes;
                while n < c.len() && !(c[n] == '"' && (hashes == 0 || at(n + 1) == '#')) {
                    n += 1;
                }
                n += 1 + hashes;
            }
            '"' => {
                n += 1;
                while n < c.len() && c[n] != '"' {
                    n += if c[n] == '\\' { 2 } else { 1 };
                }
                n += 1;
            }
            '\'' if at(n + 1) == '\\' || at(n + 2) == '\'' => {
                n += 2;
                while n < c.len() && c[n] != '\'' {
                    n += 1;
                }
                n += 1;
            }
            ':' if at(n + 1) == ':' => {
                out.push(Token::PathSep);
                n += 2;
            }
            w if w.is_alphanumeric() || w == '_' => {
                let start = n;
                while at(n).is_alphanumeric() || at(n) == '_' {
                    n += 1;
                }
                out.push(Token::Word(c[start..n].iter().collect()));
            }
            space if space.is_whitespace() => n += 1,
            mark => {
                out.push(Token::Mark(mark));
                n += 1;
            }
        }
    }
    out
}

/// Words that begin an item. An item ends with its braces or at `;`; a field, an arm or an expression may also end at `,` or with what it stands in.
const ITEMS: &[&str] = &[
    "mod",
    "fn",
    "use",
    "impl",
    "struct",
    "enum",
    "union",
    "trait",
    "const",
    "static",
    "type",
    "unsafe",
    "extern",
    "async",
    "macro_rules",
];

/// Where the brackets end that open at `n`.
fn closed(tokens: &[Token], mut n: usize) -> usize {
    let mut depth = 0;
    while n < tokens.len() {
        match tokens[n] {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        n += 1;
        if depth == 0 {
            break;
        }
    }
    n
}

/// The tokens without what `#[cfg(test)]` covers.
pub fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    without(tokens, "#[cfg(test)]")
}

/// The tokens without what this attribute covers.
pub fn without(tokens: Vec<Token>, attribute: &str) -> Vec<Token> {
    let start: Vec<Token> = self::tokens(attribute);
    let is = |n: usize, mark| tokens.get(n) == Some(&Token::Mark(mark));
    let (mut n, mut out) = (0, vec![]);
    while n < tokens.len() {
        if !tokens[n..].starts_with(&start) {
            out.push(tokens[n].clone());
            n += 1;
            continue;
        }
        n += start.len();
        // Other attributes, and who sees it.
        while is(n, '#') {
            n = closed(&tokens, n + 1);
        }
        if tokens.get(n) == Some(&Token::Word("pub".into())) {
            n = if is(n + 1, '(') { closed(&tokens, n + 1) } else { n + 1 };
        }
        let is_item = matches!(tokens.get(n), Some(Token::Word(word)) if ITEMS.contains(&word.as_str()));
        while n < tokens.len() {
            match tokens[n] {
                // The end of what it stands in: that is not its own.
                Token::Mark(')' | ']' | '}') => break,
                Token::Mark(',') if !is_item => {
                    n += 1;
                    break;
                }
                Token::Mark('{') => {
                    n = closed(&tokens, n);
                    break;
                }
                Token::Mark('(' | '[') => n = closed(&tokens, n),
                Token::Mark(';') => {
                    n += 1;
                    break;
                }
                _ => n += 1,
            }
        }
    }
    out
}

/// Whether the file declares `mod tests`, and under `#[cfg(test)]` only.
pub fn has_tests_of_its_own(text: &str) -> bool {
    let declaration = [Token::Word("mod".into()), Token::Word("tests".into())];
    let declares = |tokens: &[Token]| tokens.windows(2).any(|pair| pair == declaration);
    declares(&tokens(text)) && !declares(&without_tests(tokens(text)))
}

/// What hides from [`paths`] where a name comes from: globs, other names for what paths begin with. `any_glob`: not even those of other crates and of
/// modules in the same file.
pub fn hidden_names(tokens: &[Token], any_glob: bool) -> Vec<String> {
    let is_word =
        |n: usize, words: &[&str]| matches!(tokens.get(n), Some(Token::Word(word)) if words.contains(&word.as_str()));
    let roots = ["crate", "self", "super"];
    let mut out = vec![];
    for n in 0..tokens.len() {
        if is_word(n, &["extern"]) && is_word(n + 1, &["crate"]) && is_word(n + 2, &["self"]) {
            out.push("extern crate self".into());
        }
        if !is_word(n, &["use"]) {
            continue;
        }
        let end = tokens[n..].iter().position(|token| *token == Token::Mark(';')).map_or(tokens.len(), |at| n + at);
        let is_own = is_word(n + 1, &roots);
        if (any_glob || is_own) && tokens[n..end].contains(&Token::Mark('*')) {
            out.push("a glob".into());
        }
        if (n..end).any(|n| is_word(n, &roots) && is_word(n + 1, &["as"])) {
            out.push("another name for crate, self or super".into());
        }
    }
    out
}

/// A path as it stands there, and the name that `use` gives to what it leads to.
struct Found {
    path: Vec<String>,
    name: Option<String>,
}

/// Every path in the tokens, `use` trees spread out, made absolute from `module` (as segments). Only those that begin with
/// `crate`, `self`, `super`, the name of a module below `module`, or a name that the file's `use` gives to one of these.
pub fn paths(tokens: &[Token], module: &[String], known: &BTreeSet<Vec<String>>) -> Vec<Vec<String>> {
    let (mut all, mut inline, mut depth, mut n) = (vec![], vec![], 0usize, 0);
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while n < tokens.len() {
        match &tokens[n] {
            Token::Mark('{') => depth += 1,
            Token::Mark('}') => {
                depth = depth.saturating_sub(1);
                if inline.last().is_some_and(|(_, d)| *d == depth) {
                    inline.pop();
                }
            }
            Token::Word(word) if word == "mod" => {
                if let (Some(Token::Word(name)), Some(Token::Mark('{'))) = (tokens.get(n + 1), tokens.get(n + 2)) {
                    inline.push((name.clone(), depth));
                }
            }
            Token::Word(word) if word == "use" => {}
            Token::Word(_) if n == 0 || tokens[n - 1] != Token::PathSep => {
                let here: Vec<String> =
                    module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect();
                let is_use = n > 0 && tokens[n - 1] == Token::Word("use".into());
                let mut found = vec![];
                n = tree(tokens, n, &mut vec![], &mut found);
                for Found { path, name } in found {
                    let full = absolute(&path, &here, known);
                    if let (true, Some(full), Some(name)) = (is_use, &full, name) {
                        names.insert(name, full.clone());
                    }
                    all.push((path, full));
                }
                continue;
            }
            _ => {}
        }
        n += 1;
    }
    // A name may stand before the `use` that gives it.
    let behind_a_name = |path: &[String]| {
        let (first, rest) = path.split_first()?;
        let full = names.get(first).filter(|_| !rest.is_empty())?;
        Some(full.iter().chain(rest).cloned().collect())
    };
    all.into_iter().filter_map(|(path, full)| full.or_else(|| behind_a_name(&path))).collect()
}

/// Reads one path or tree from `n` on; the paths in it, and where it ends.
fn tree(tokens: &[Token], mut n: usize, prefix: &mut Vec<String>, out: &mut Vec<Found>) -> usize {
    let length = prefix.len();
    while let Some(Token::Word(word)) = tokens.get(n) {
        prefix.push(word.clone());
        n += 1;
        if tokens.get(n) != Some(&Token::PathSep) {
            break;
        }
        n += 1;
        if tokens.get(n) == Some(&Token::Mark('{')) {
            n += 1;
            while n < tokens.len() && tokens[n] != Token::Mark('}') {
                let start = n;
                n = tree(tokens, n, prefix, out).max(start + 1);
            }
            prefix.truncate(length);
            return n + 1;
        }
    }
    if prefix.len() > length {
        let mut path = prefix.clone();
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let mut name = path.last().cloned();
        if let (Some(Token::Word(word)), Some(Token::Word(other))) = (tokens.get(n), tokens.get(n + 1))
            && word == "as"
        {
            (name, n) = (Some(other.clone()), n + 2);
        }
        out.push(Found { path, name });
    }
    prefix.truncate(length);
    n
}

fn absolute(path: &[String], here: &[String], known: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    let (first, rest) = path.split_first()?;
    let mut base = match first.as_str() {
        "crate" => vec![],
        "self" if !rest.is_empty() => here.to_vec(),
        "super" => here[..here.len().saturating_sub(1)].to_vec(),
        child => {
            let full: Vec<String> = here.iter().cloned().chain([child.to_string()]).collect();
            if !known.contains(&full) || rest.is_empty() {
                return None;
            }
            full
        }
    };
    for part in rest {
        if part == "super" {
            base.pop();
        } else {
            base.push(part.clone());
        }
    }
    Some(base)
}

/// The longest beginning of `path` that is a module with a file.
pub fn module_of(path: &[String], known: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|prefix| known.contains(prefix))
}
