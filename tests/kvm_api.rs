//! What docs/kvm-api.md says of the capabilities of `/dev/kvm`, against the driver that answers: the page names each capability that
//! has an answer, and none that has not.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Capability -> what is answered.
type Answers = BTreeMap<String, String>;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The cells of each row of a table, in the section `title` of a page.
fn rows<'a>(page: &'a str, title: &str) -> impl Iterator<Item = Vec<&'a str>> {
    let (_, section) =
        page.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("there is no section {title}"));
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    section.lines().filter(|line| line.starts_with("| KVM_CAP_")).map(|row| row.split('|').map(str::trim).collect())
}

/// The page's two tables: what has an answer, and what has none.
fn told(page: &str) -> (Answers, Vec<String>) {
    let (mut answers, mut none) = (Answers::new(), vec![]);
    for row in rows(page, "Capabilities") {
        for name in row[1].split(", ").map(str::to_owned) {
            // Capability, answer, remark; or capability, reason; each between two bars.
            match row.len() {
                5 => assert_eq!(answers.insert(name.clone(), row[2].to_owned()), None, "{name} stands there twice"),
                4 => none.push(name),
                _ => panic!("a row of {} cells: {row:?}", row.len()),
            }
        }
    }
    (answers, none)
}

/// What `cv_check_extension` returns for each of its labels, as it stands there.
fn answered(source: &str) -> Answers {
    let (_, function) = source.split_once("\nint cv_check_extension(").expect("the driver answers for capabilities");
    let (function, _) = function.split_once("\n}\n").expect("a function has an end");
    let (mut answers, mut labels) = (Answers::new(), vec![]);
    for line in function.lines().map(str::trim) {
        if let Some(label) = line.strip_prefix("case ").and_then(|rest| rest.strip_suffix(':')) {
            labels.push(label.to_owned());
        } else if let Some(value) = line.strip_prefix("return ").and_then(|rest| rest.strip_suffix(';')) {
            answers.extend(labels.drain(..).map(|label| (label, value.to_owned())));
        }
    }
    assert_eq!(labels, [""; 0], "nothing is returned for these");
    answers
}

/// The number of a `#define` of the driver.
fn defined(name: &str) -> String {
    let header = read("kserv/linux/driver.h");
    let mut values = header.lines().filter_map(|line| line.strip_prefix(&format!("#define {name} ")));
    values.next().unwrap_or_else(|| panic!("driver.h has no {name}")).to_owned()
}

#[test]
fn the_page_has_exactly_the_capabilities_that_the_driver_answers() {
    let (told, none) = told(&read("docs/kvm-api.md"));
    let answered = answered(&read("kserv/linux/vm.c"));
    assert_eq!(
        told.keys().collect::<Vec<_>>(),
        answered.keys().collect::<Vec<_>>(),
        "left: the page, right: the driver"
    );
    assert!(none.len() > 10, "{none:?}");
    let both: Vec<_> = none.iter().filter(|name| answered.contains_key(*name)).collect();
    assert_eq!(both, [""; 0], "the page says 0, and the driver has an answer");
}

#[test]
fn the_page_has_the_numbers_that_the_driver_answers() {
    let (told, _) = told(&read("docs/kvm-api.md"));
    let mut numbers = 0;
    for (name, value) in answered(&read("kserv/linux/vm.c")) {
        let number = match value.as_str() {
            "1" => value,
            _ if value.starts_with("CV_MAX_") => defined(&value),
            // Depends on the machine or on the VM: the page says on what, in words.
            _ => {
                assert_ne!(told[&name], "1", "{name}: the driver answers {value}");
                continue;
            }
        };
        assert_eq!(told[&name], number, "{name}: left: the page, right: the driver");
        numbers += 1;
    }
    assert!(numbers > 20, "{numbers}");
}

#[test]
fn page_and_source_are_read_as_they_are_meant() {
    let page = "\n## Capabilities\n| capability | answer | |\n|---|---|---|\n| KVM_CAP_A, KVM_CAP_B | 1 | x |\nAll else:\n| KVM_CAP_C | no |\n\n## VM\n| KVM_CAP_D | 1 | y |\n";
    let (answers, none) = told(page);
    assert_eq!(answers.into_keys().collect::<Vec<_>>(), ["KVM_CAP_A", "KVM_CAP_B"]);
    assert_eq!(none, ["KVM_CAP_C"]);
    let source = "\nint cv_check_extension(x)\n{\n\tcase KVM_CAP_A:\n\tcase KVM_CAP_B:\n\t\treturn 1;\n\tcase KVM_CAP_C:\n\t\t/* why */\n\t\treturn f(x);\n\tdefault:\n\t\treturn 0;\n}\n\tcase KVM_CAP_D:\n";
    let read: Vec<_> = answered(source).into_iter().collect();
    let expected = [("KVM_CAP_A", "1"), ("KVM_CAP_B", "1"), ("KVM_CAP_C", "f(x)")];
    assert_eq!(read, expected.map(|(label, value)| (label.to_owned(), value.to_owned())));
}
