//! Tables for people, and words in them. What comes from users or other hosts is made plain here, so that
//! nothing of it reaches the terminal as a command.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use jiff::SignedDuration;
use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Whether somebody sees colours and wants them (<https://no-color.org>).
pub(super) fn is_coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A table with this head, as wide as the terminal, or as its longest lines if there is none.
pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head.iter().map(Cell::new));
    match std::io::stdout().is_terminal() {
        true => table.set_content_arrangement(ContentArrangement::Dynamic),
        false => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    match is_coloured() {
        true => table.enforce_styling(),
        false => table.force_no_tty(),
    };
    table
}

/// The table's lines.
pub(super) fn text(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// A number, to the right.
pub(super) fn number(value: impl ToString) -> Cell {
    Cell::new(value.to_string()).set_alignment(CellAlignment::Right)
}

/// Text from elsewhere; a dash for nothing.
pub(super) fn word(text: &str) -> Cell {
    Cell::new(or_dash(&plain(text)))
}

/// The state of a node or server, coloured by whether it is good.
pub(super) fn state(state: &str) -> Cell {
    let colour = match state {
        "up" => Color::Green,
        "draining" | "drained" | "maintenance" => Color::Yellow,
        _ => Color::Red,
    };
    Cell::new(plain(state)).fg(colour)
}

/// Text without control characters, and without those that change the direction of writing, which make a
/// table say something else.
pub(super) fn plain(text: &str) -> String {
    const MARKS: [char; 3] = ['\u{200e}', '\u{200f}', '\u{61c}'];
    let turns = |letter| {
        MARKS.contains(&letter) || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|letter| if letter.is_control() || turns(letter) { '\u{fffd}' } else { letter })
        .collect()
}

pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Bytes in the unit that fits.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A part of a whole, in percent.
pub(super) fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.0} %", part as f64 * 100.0 / whole as f64),
    }
}

/// A length of time, to the second.
pub(super) fn time(time: Duration) -> String {
    format!("{:#}", SignedDuration::from_secs(time.as_secs().min(i64::MAX as u64) as i64))
}

/// Time since a moment, or nothing if it is still to come.
pub(super) fn since(unix_ms: u64) -> Duration {
    Duration::from_millis(now_ms().saturating_sub(unix_ms))
}

/// Time to a moment, or nothing if it is over.
pub(super) fn until(unix_ms: u64) -> Duration {
    Duration::from_millis(unix_ms.saturating_sub(now_ms()))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_nothing_is_cut() {
        let mut people = table(&["NAME", "AGE"]);
        let long = "x".repeat(300);
        people.add_row(vec![word("ann"), number(7)]).add_row(vec![word(&long), number(12_345)]);
        let text = text(people);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!("ann{}      7", " ".repeat(297)));
        assert_eq!(lines[2], format!("{long}  12345"));
        assert!(lines[0].starts_with("NAME  ") && lines[0].ends_with("AGE"), "{}", lines[0]);
    }

    #[test]
    fn what_users_wrote_commands_no_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(plain("ann\u{202e}bob\u{9b}1m"), "ann\u{fffd}bob\u{fffd}1m");
        assert_eq!(word("").content(), "-");
    }

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!([0, 1023, 1024, 5 << 20].map(bytes), ["0 B", "1023 B", "1.0 KiB", "5.0 MiB"]);
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!((share(1, 4), share(1, 0)), ("25 %".to_owned(), "-".to_owned()));
        assert_eq!(time(Duration::from_secs(3723)), "1h 2m 3s");
        assert_eq!(time(Duration::ZERO), "0s");
    }
}
