//! The live screen of `top`.

use super::Samples;
use super::rates::{NODE_HEAD, Picture, Sample, node_cells, rate};
use crate::tool::table::{bytes, is_coloured, plain};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, Wrap};
use ratatui::{DefaultTerminal, Frame};
use selvage_fabric::error::{Error, Origin, Result};
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

/// How long a key may wait.
const KEY_WAIT: Duration = Duration::from_millis(50);

/// What is on the screen.
struct Screen {
    before: Sample,
    picture: Picture,
    /// Why there is nothing newer.
    trouble: Option<String>,
    is_paused: bool,
    is_coloured: bool,
}

/// Draws what comes until somebody presses q.
///
/// # Errors
/// If the terminal cannot be used. It is given back as it was.
pub(super) fn run(first: Sample, samples: &Samples) -> Result<()> {
    let os = |why| Error::os(Origin::Director, "cannot use this terminal", why);
    let mut terminal = ratatui::try_init().map_err(os)?;
    let picture = Picture::new(&first, &first);
    let (trouble, is_coloured) = (None, is_coloured());
    let mut screen = Screen { before: first, picture, trouble, is_paused: false, is_coloured };
    let shown = screen.show(&mut terminal, samples);
    let restored = ratatui::try_restore();
    shown.and(restored).map_err(os)
}

impl Screen {
    fn show(&mut self, terminal: &mut DefaultTerminal, samples: &Samples) -> std::io::Result<()> {
        loop {
            terminal.draw(|frame| self.draw(frame))?;
            while !event::poll(KEY_WAIT)? {
                if self.take(samples) {
                    terminal.draw(|frame| self.draw(frame))?;
                }
            }
            let Event::Key(key) = event::read()? else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Char('p') => self.is_paused = !self.is_paused,
                _ => {}
            }
        }
    }

    /// Takes the newest sample, if there is one. Returns whether something changed.
    fn take(&mut self, samples: &Samples) -> bool {
        match samples.try_recv() {
            Ok(Ok(now)) => {
                if !self.is_paused {
                    self.picture = Picture::new(&self.before, &now);
                }
                (self.before, self.trouble) = (now, None);
            }
            Ok(Err(error)) => self.trouble = Some(error.to_string()),
            Err(TryRecvError::Disconnected) => self.trouble = Some("nobody asks any more".to_owned()),
            Err(TryRecvError::Empty) => return false,
        }
        true
    }

    fn style(&self, colour: Color) -> Style {
        if self.is_coloured { Style::new().fg(colour) } else { Style::new() }
    }

    fn state_style(&self, state: &str) -> Style {
        self.style(match state {
            "up" => Color::Green,
            "draining" | "drained" | "maintenance" => Color::Yellow,
            _ => Color::Red,
        })
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let rows = |count: usize| Constraint::Length(count.min(usize::from(u16::MAX)) as u16);
        let picture = &self.picture;
        let [head, nodes, servers, rest, foot] = Layout::vertical([
            rows(3),
            rows(picture.nodes.len() + 2),
            rows(picture.servers.len() + 2),
            Constraint::Min(0),
            rows(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        self.draw_nodes(frame, nodes);
        self.draw_servers(frame, servers);
        let mut lines: Vec<Line<'_>> = picture
            .dead
            .iter()
            .map(|dead| Line::styled(plain(&dead.sentence()), self.style(Color::Yellow)))
            .collect();
        lines.extend(picture.links.iter().filter(|link| link.transport.is_empty()).map(|link| {
            Line::styled(format!("{}: {}", link.short(), plain(&link.detail)), self.style(Color::Red))
        }));
        let open = picture.links.iter().filter(|link| !link.transport.is_empty());
        let open: Vec<String> = open.map(super::rates::LinkLine::short).collect();
        lines.push(Line::raw(open.join("   ")));
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), rest);
        frame.render_widget(Paragraph::new(self.foot()), foot);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let picture = &self.picture;
        let protection = &picture.protection;
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let count = |number: u64, bad: Color| {
            let style = if number > 0 { self.style(bad) } else { Style::new() };
            Span::styled(number.to_string(), style.add_modifier(Modifier::BOLD))
        };
        let one_is_short = if picture.copies_wanted > 1 { Color::Yellow } else { Color::Green };
        vec![
            Line::from(vec![
                Span::styled("selvage", bold),
                Span::raw(format!("  epoch {}  ", picture.epoch)),
                Span::styled(rate(picture.requests_per_s), bold),
                Span::raw(" requests/s"),
            ]),
            Line::from(vec![
                Span::styled(picture.sessions.to_string(), bold),
                Span::raw(" sessions: "),
                count(protection.none, Color::Red),
                Span::raw(" without a copy, "),
                count(protection.one, one_is_short),
                Span::raw(" with 1, "),
                count(protection.two, Color::Green),
                Span::raw(format!(" with 2 ({} wanted)", picture.copies_wanted)),
            ]),
        ]
    }

    fn draw_nodes(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.picture.nodes.iter().map(|node| {
            Row::new(node_cells(node)).style(match node.state.as_str() {
                "up" => Style::new(),
                state => self.state_style(state),
            })
        });
        let widths = NODE_HEAD.map(|name| Constraint::Length(name.len().max(11) as u16));
        let head = Row::new(NODE_HEAD).style(Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Table::new(rows, widths).header(head), area);
    }

    fn draw_servers(&self, frame: &mut Frame<'_>, area: Rect) {
        let rows = self.picture.servers.iter().map(|server| {
            let cells =
                [plain(&server.name), plain(&server.state), server.copies.to_string(), bytes(server.bytes)];
            Row::new(cells).style(match server.state.as_str() {
                "up" => Style::new(),
                state => self.state_style(state),
            })
        });
        let head = Row::new(["SERVER", "STATE", "COPIES", "LEASES"]);
        let head = head.style(Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Table::new(rows, [Constraint::Length(14); 4]).header(head), area);
    }

    fn foot(&self) -> Line<'static> {
        match (&self.trouble, self.is_paused) {
            (Some(why), _) => Line::styled(plain(why), self.style(Color::Red)),
            (None, true) => Line::styled("paused; p goes on, q quits", self.style(Color::Yellow)),
            (None, false) => Line::raw("p pauses, q quits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::status::{Protection, Status};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use selvage_fabric::error::ErrorKind;
    use selvage_fabric::ident::Epoch;
    use std::sync::mpsc::sync_channel;
    use std::time::Instant;

    fn sample(sessions: u64, requests: u64, at: Instant) -> Sample {
        let status = Status {
            epoch: Epoch { term: 3, number: 14 },
            starting: false,
            copies: 2,
            nodes: Vec::new(),
            servers: Vec::new(),
            dead: Vec::new(),
            protection: Protection { none: 0, one: 0, two: sessions },
            spared: 0,
            takeovers: Default::default(),
        };
        Sample { at, status, requests }
    }

    fn seen(screen: &Screen) -> String {
        let mut terminal = Terminal::new(TestBackend::new(90, 12)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_follows_pauses_and_says_what_is_wrong() {
        let began = Instant::now();
        let first = sample(5, 0, began);
        let picture = Picture::new(&first, &first);
        let mut screen =
            Screen { before: first, picture, trouble: None, is_paused: false, is_coloured: false };
        assert!(seen(&screen).contains("5 sessions") && seen(&screen).contains("q quits"));
        let (news, samples) = sync_channel(4);
        news.send(Ok(sample(7, 40, began + Duration::from_secs(2)))).unwrap();
        assert!(screen.take(&samples) && !screen.take(&samples));
        let shown = seen(&screen);
        assert!(shown.contains("7 sessions") && shown.contains("20.0 requests/s"), "{shown}");
        screen.is_paused = true;
        news.send(Ok(sample(9, 40, began + Duration::from_secs(3)))).unwrap();
        assert!(screen.take(&samples));
        assert!(seen(&screen).contains("7 sessions") && seen(&screen).contains("paused"));
        news.send(Err(Error::new(ErrorKind::Unreachable, Origin::Director, "no director"))).unwrap();
        assert!(screen.take(&samples) && seen(&screen).contains("no director"));
    }

    #[test]
    fn a_small_terminal_shows_what_it_can() {
        let first = sample(5, 0, Instant::now());
        let picture = Picture::new(&first, &first);
        let screen = Screen { before: first, picture, trouble: None, is_paused: false, is_coloured: true };
        let mut terminal = Terminal::new(TestBackend::new(8, 2)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
    }
}
