//! Rust sources as far as the architecture tests read them: tokens without comments, strings and unit tests, and the paths in
//! them.
#![allow(missing_docs)]

use std::collections::BTreeSet;

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

/// The tokens without what `#[cfg(test)]` covers.
pub fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let start: Vec<Token> = self::tokens("#[cfg(test)]");
    let (mut n, mut out) = (0, vec![]);
    while n < tokens.len() {
        if !tokens[n..].starts_with(&start) {
            out.push(tokens[n].clone());
            n += 1;
            continue;
        }
        // One item: up to `;`, or to the end of its braces.
        let mut depth = 0;
        n += start.len();
        while n < tokens.len() {
            match tokens[n] {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
            n += 1;
            if depth == 0 && matches!(tokens[n - 1], Token::Mark('}' | ';')) {
                break;
            }
        }
    }
    out
}

/// Every path in the tokens, `use` trees spread out, made absolute from `module` (as segments). Only those that begin with
/// `crate`, `self`, `super` or the name of a module below `module`.
pub fn paths(tokens: &[Token], module: &[String], known: &BTreeSet<Vec<String>>) -> Vec<Vec<String>> {
    let (mut out, mut inline, mut depth, mut n) = (vec![], vec![], 0usize, 0);
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
            Token::Word(_) if n == 0 || tokens[n - 1] != Token::PathSep => {
                let here: Vec<String> =
                    module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect();
                let mut found = vec![];
                let end = tree(tokens, n, &mut vec![], &mut found);
                out.extend(found.iter().filter_map(|path| absolute(path, &here, known)));
                n = end;
                continue;
            }
            _ => {}
        }
        n += 1;
    }
    out
}

/// Reads one path or tree from `n` on; the paths in it, and where it ends.
fn tree(tokens: &[Token], mut n: usize, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
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
        out.push(prefix.clone());
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
            if rest.is_empty() || !known.contains(&full) {
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
