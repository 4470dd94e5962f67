//! Manual pages that are made from what is written elsewhere, so that both say the same: `selvage.toml(5)`
//! from the tables of `docs/using.md`, `libselvage(3)` from the rules and functions of `selvage.h`.

use super::VERSION;
use anyhow::{Context, Result, ensure};

/// `selvage.toml(5)` from the chapter on configuration.
///
/// # Errors
/// There is no such chapter, or it has no keys.
pub fn configuration(using: &str) -> Result<String> {
    let (_, chapter) =
        using.split_once("\n## Configuration\n").context("docs/using.md: no ## Configuration")?;
    let chapter = chapter.split("\n## ").next().unwrap_or_default();
    let mut page = head("selvage.toml", "5", "the configuration of a Selvage cluster");
    let mut keys = 0;
    // Every file is looked for in the same places; the page of the documentation says it before the chapter.
    page.push_str(
        ".SH DESCRIPTION\n/etc/selvage/selvage.toml, or the file in SELVAGE_CONFIG, or the one given with \
         \\-\\-config.\n.PP\n",
    );
    for line in chapter.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if let Some(title) = line.strip_prefix("### ") {
            page.push_str(&format!(".SH \"{}\"\n", text(title)));
        } else if line.starts_with("|--") || line.starts_with("| key |") {
        } else if let (true, [key, default, meaning @ ..]) = (line.starts_with('|'), &cells[..]) {
            let default = match *default {
                "required" => "required".to_owned(),
                other => format!("default {}", text(other)),
            };
            keys += usize::from(!meaning.is_empty());
            let meaning = if meaning.is_empty() { default.clone() } else { text(&meaning.join(" | ")) };
            page.push_str(&format!(".TP\n\\fB{}\\fR ({default})\n{meaning}\n", text(key)));
        } else if line.is_empty() {
            page.push_str(".PP\n");
        } else if !line.starts_with("```") {
            page.push_str(&format!("{}\n", text(line)));
        }
    }
    ensure!(keys > 30, "docs/using.md has only {keys} keys of the configuration");
    page.push_str(
        ".SH \"SEE ALSO\"\n\\fBselvage\\fR(1), \\fBselvage-director\\fR(8), \\fBselvage-server\\fR(8)\n",
    );
    Ok(page)
}

/// `libselvage(3)` from the header: its rules, and the functions with their first sentences.
///
/// # Errors
/// The header has another form.
pub fn library(header: &str) -> Result<String> {
    let (rules, declarations) = header.split_once("*/").context("selvage.h begins with no comment")?;
    let (_, rules) = rules.split_once("RULES").context("selvage.h has no RULES")?;
    let mut page = head("libselvage", "3", "sessions of web servers that outlive their host");
    page.push_str(
        ".SH SYNOPSIS\n.nf\n#include <selvage.h>     /* C11 */\n#include <selvage.hpp>   /* C++17 */\n\
         cc `pkg\\-config \\-\\-cflags \\-\\-libs selvage`\n.fi\n.SH RULES\n",
    );
    for line in rules.lines().filter_map(|line| line.trim_start().strip_prefix("*")) {
        match line.strip_prefix(' ').filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())) {
            Some(rule) => {
                let (name, rest) = rule.split_once(' ').unwrap_or((rule, ""));
                page.push_str(&format!(".TP\n\\fB{}\\fR\n{}\n", text(name), text(rest.trim())));
            }
            None if line.trim().is_empty() => {}
            None => page.push_str(&format!("{}\n", text(line.trim()))),
        }
    }
    page.push_str(".SH FUNCTIONS\n");
    let (_, declarations) =
        declarations.split_once("extern \"C\" {").context("selvage.h declares nothing")?;
    let mut functions = 0;
    for block in declarations.split("\n\n") {
        let Some(at) = block.lines().position(|line| line.contains('(') && !line.starts_with("//")) else {
            continue;
        };
        let lines: Vec<&str> = block.lines().collect();
        let comment: String = lines[..at]
            .iter()
            .filter_map(|line| line.strip_prefix("//"))
            .map(|line| format!("{line}\n"))
            .collect();
        let declaration: String = lines[at..].iter().map(|line| format!("{}\n", text(line))).collect();
        page.push_str(&format!(".SS \"\"\n.nf\n{declaration}.fi\n"));
        for paragraph in comment.split("\n \n").chain(None::<&str>) {
            page.push_str(&format!("{}\n", text(paragraph.trim())));
        }
        functions += 1;
    }
    ensure!(functions > 20, "selvage.h has only {functions} functions");
    Ok(page)
}

fn head(name: &str, section: &str, what: &str) -> String {
    let title = name.to_uppercase();
    format!(
        ".TH {title} {section} \"\" \"selvage {VERSION}\" \"\"\n.SH NAME\n{name} \\- {what}\n",
        what = text(what)
    )
}

/// Text as roff wants it, without the marks of Markdown.
fn text(plain: &str) -> String {
    let plain = plain.replace("**", "").replace('`', "").replace('\\', "\\e").replace('-', "\\-");
    let lines = plain.lines().map(|line| {
        // A full stop or an apostrophe at the beginning would be a command.
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        format!("{guard}{}", line.trim_start())
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvage_tests::product::workspace_root;
    use std::fs;

    #[test]
    fn every_key_and_every_function_is_in_its_page() {
        let using = fs::read_to_string(workspace_root().join("docs/using.md")).unwrap();
        let page = configuration(&using).unwrap();
        for word in ["cookie_keys", "silence_ms", "archive_bytes_max", "[cluster]", "[[node]]", "required"] {
            assert!(page.contains(word), "no {word}");
        }
        let header = fs::read_to_string(workspace_root().join("include/selvage.h")).unwrap();
        let page = library(&header).unwrap();
        let symbols = fs::read_to_string(workspace_root().join("webnode-ffi/symbols.txt")).unwrap();
        for symbol in symbols.lines() {
            assert!(page.contains(&format!("{symbol}(")), "no {symbol}");
        }
        assert!(page.contains("SELVAGE_STATUS_FORKED") && page.contains("Thread rule:"), "the rules");
    }

    #[test]
    fn nothing_in_a_text_is_a_command() {
        assert_eq!(text(".TH x\n'y `-z` **b** \\n"), "\\&.TH x\n\\&'y \\-z b \\en");
    }
}
