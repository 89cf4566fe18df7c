//! The names of tests, read from sources: for tests about tables that name them.

/// The names of the tests of a file that run by default: not what is ignored, nor what stands in a comment.
pub fn tests_of(text: &str) -> Vec<&str> {
    let (mut names, mut in_comment) = (vec![], false);
    let mut lines = text.lines().map(str::trim).filter(|line| {
        let begins = line.starts_with("/*");
        let outside = !in_comment && !begins;
        in_comment = (in_comment || begins) && !line.ends_with("*/");
        outside
    });
    while lines.by_ref().any(|line| line == "#[test]") {
        let mut ignored = false;
        for line in lines.by_ref() {
            ignored |= line.starts_with("#[ignore");
            if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
                if !ignored {
                    names.push(name);
                }
                break;
            }
        }
    }
    names
}
