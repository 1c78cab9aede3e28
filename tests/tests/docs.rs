//! What the README and docs/ tell people to type is what nasd takes.
#![allow(clippy::unwrap_used)]

use nasd_tests::node::nasd;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path());
    let markdown = docs.filter(|p| p.extension().is_some_and(|e| e == "md"));
    let all: Vec<_> = std::iter::once(root.join("README.md"))
        .chain(markdown)
        .map(|p| (p.clone(), std::fs::read_to_string(&p).unwrap()))
        .collect();
    assert!(all.len() > 5, "only {} documents", all.len());
    all
}

/// The contents of all blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn every_configuration_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nasd.toml");
    let mut n = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "toml").iter().filter(|b| b.starts_with("[node]")) {
            std::fs::write(&file, block).unwrap();
            let out = nasd(&["check", "--config", file.to_str().unwrap()]);
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{}: {said}\n{block}", path.display());
            n += 1;
        }
    }
    assert!(n >= 3, "only {n} configurations");
}

/// Every key of the configuration, as `nasd check` prints it, has its row.
#[test]
fn every_key_is_documented() {
    let documents = documents();
    let text = &documents.iter().find(|(p, _)| p.ends_with("configuration.md")).unwrap().1;
    let whole = blocks(text, "toml").into_iter().find(|b| b.starts_with("[node]")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nasd.toml");
    std::fs::write(&file, whole).unwrap();
    let out = nasd(&["check", "--config", file.to_str().unwrap()]);
    let printed = String::from_utf8(out.stdout).unwrap();
    for key in printed.lines().filter_map(|l| l.split_once(" = ")).map(|(k, _)| k) {
        assert!(text.contains(&format!("| `{key}` |")), "docs/configuration.md has no row for {key}");
        assert!(whole.contains(&format!("{key} = ")), "its example does not show {key}");
    }
}

/// `nasd …` in code: the words up to the first that is no command, and the options.
fn commands(text: &str) -> BTreeSet<Vec<String>> {
    let fenced: Vec<&str> = text.split("```").skip(1).step_by(2).flat_map(str::lines).collect();
    let inline: Vec<&str> = text
        .split("```")
        .step_by(2)
        .flat_map(|prose| prose.split('`').skip(1).step_by(2))
        .filter(|code| code.starts_with("nasd "))
        .collect();
    let mut all = BTreeSet::new();
    for code in fenced.into_iter().chain(inline) {
        // What follows a command on its line is another command, an argument in capitals or quotes, or a comment.
        let code = code.split(" #").next().unwrap();
        for command in code.split(['|', ';']).map(str::trim) {
            let mut words = command.split_whitespace().skip_while(|w| matches!(*w, "sudo" | "$" | "#"));
            if words.next() == Some("nasd") {
                all.insert(words.map(str::to_owned).collect());
            }
        }
    }
    all
}

#[test]
fn every_command_exists() {
    let mut n = 0;
    for (path, text) in documents() {
        for words in commands(&text) {
            let mut command: Vec<&str> = Vec::new();
            let help = |command: &[&str]| {
                let out = nasd(&[command, &["--help"]].concat());
                out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
            };
            let mut text = help(&[]).unwrap();
            for word in &words {
                if let Some(option) = word.trim_start_matches('[').strip_prefix("--") {
                    let option = option.trim_end_matches([']', ',', '.']).split('=').next().unwrap();
                    assert!(
                        text.contains(&format!("--{option}")),
                        "{}: nasd {} has no --{option}",
                        path.display(),
                        command.join(" ")
                    );
                } else if text.contains("\nCommands:\n") {
                    command.push(word);
                    text = help(&command).unwrap_or_else(|| {
                        panic!("{}: there is no nasd {}", path.display(), command.join(" "))
                    });
                }
            }
            n += 1;
        }
    }
    assert!(n >= 20, "only {n} commands");
}

/// Every command of the command line stands in the README's table.
#[test]
fn every_command_is_documented() {
    let readme = &documents()[0].1;
    let help = String::from_utf8(nasd(&["--help"]).stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for command in list.lines().filter_map(|l| l.split_whitespace().next()).filter(|c| *c != "help") {
        assert!(readme.contains(&format!("| `nasd {command}")), "the README's table lacks nasd {command}");
    }
}

/// Whatever a document names in this repository is there: files by links, tests by `file.rs::name`.
#[test]
fn every_reference_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (path, text) in documents() {
        for target in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let file = target.split('#').next().unwrap();
            if !file.is_empty() && !file.contains("://") {
                assert!(path.parent().unwrap().join(file).exists(), "{}: no {file}", path.display());
            }
        }
        for code in text.split('`').skip(1).step_by(2) {
            if let Some((file, name)) = code.split_once(".rs::") {
                let file = root.join(format!("{file}.rs"));
                let source = std::fs::read_to_string(&file)
                    .unwrap_or_else(|e| panic!("{}: {}: {e}", path.display(), file.display()));
                assert!(source.contains(&format!("fn {name}(")), "{}: no test {code}", path.display());
            }
        }
    }
}
