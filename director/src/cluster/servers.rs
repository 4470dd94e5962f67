//! Session servers: reports, silence, and what may enter a view.
//!
//! An incarnation that was declared down is barred: it stays out until it reports another (R6). It is sent
//! the view that drops it, and begins a new life by itself.

use super::evidence::{Verdict, judge};
use super::{Cluster, Effect, Link, Moment, Phase, ServerSettings};
use crate::limits;
use selvage_fabric::control::message::{ServerNumbers, ServerReport, ToServer};
use selvage_fabric::ident::{Epoch, Incarnation};
use selvage_fabric::rules::{Rule, holds};
use std::time::Duration;

/// A configured session server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) weight: u32,
    pub(super) socket: String,
    pub(super) control: Option<String>,
    /// The connection and the life at its other end.
    pub(super) link: Option<(Link, Incarnation)>,
    /// The life that is in the view.
    pub(super) up: Option<Incarnation>,
    /// When it was last heard, or later by what it is forgiven.
    pub(super) heard: Moment,
    /// The newest epoch that the life in the view has carried out.
    pub(super) confirmed: Epoch,
    pub(super) report: ServerReport,
    /// The newest that a report brought.
    pub(super) numbers: ServerNumbers,
    /// When that came.
    pub(super) report_at: Moment,
    /// The silence in which it was spared was counted: `heard` of then.
    spared: Option<Moment>,
    /// It has answered, or nobody is there: recovery need not wait for it.
    pub(super) known: bool,
    /// Lives that were declared down.
    barred: Vec<Incarnation>,
    /// Requests that it has not answered yet.
    open: u32,
    /// Its first report on this connection was taken in. No view may reach it before: one that does not know
    /// what the server holds would make it release that.
    pub(super) reported: bool,
    beat_due: Moment,
    /// Since when it has a view to carry out.
    behind_since: Option<Moment>,
}

impl Server {
    pub(super) fn new(settings: &ServerSettings) -> Self {
        Self {
            weight: settings.weight,
            socket: settings.socket.clone(),
            control: settings.control.clone(),
            link: None,
            up: None,
            heard: Moment::ZERO,
            confirmed: Epoch::default(),
            report: ServerReport::default(),
            numbers: ServerNumbers::default(),
            report_at: Moment::ZERO,
            spared: None,
            known: false,
            barred: Vec::new(),
            open: 0,
            reported: false,
            beat_due: Moment::ZERO,
            behind_since: None,
        }
    }

    pub(super) fn forgive(&mut self, forgive: impl Fn(&mut Moment)) {
        forgive(&mut self.heard);
        forgive(&mut self.report_at);
        if let Some(since) = &mut self.behind_since {
            forgive(since);
        }
    }

    /// Notes that a view goes out; the connection to send it over.
    pub(super) fn send_view(&mut self, now: Moment) -> Option<Link> {
        if self.up.is_some() {
            self.behind_since.get_or_insert(now);
        }
        let (link, _) = self.link.filter(|_| self.reported)?;
        self.open += 1;
        Some(link)
    }

    pub(super) fn is_barred(&self, incarnation: Incarnation) -> bool {
        holds(Rule::R6AckIncarnation) && self.barred.contains(&incarnation)
    }

    pub(super) fn bar(&mut self, incarnation: Incarnation) {
        if self.barred.len() >= limits::BARRED_MAX {
            self.barred.remove(0);
        }
        self.barred.push(incarnation);
    }

    /// Judges its silence, and whether it is behind for longer than allowed.
    fn judge(&self, seen: impl FnOnce() -> Option<Moment>, silence: Duration, now: Moment) -> Verdict {
        let allowed = match self.behind_since {
            // It lived when the view was sent, so its silence can be work.
            Some(since) if self.link.is_some() && self.heard + silence / 2 >= since => {
                silence * limits::VIEW_WORK_FACTOR
            }
            _ => silence,
        };
        let behind =
            self.behind_since.is_some_and(|since| now > since + silence * limits::VIEW_BEHIND_FACTOR);
        if behind { Verdict::Silent } else { judge(self.heard, allowed, seen, silence, now) }
    }
}

impl Cluster {
    pub(super) fn server_opened(
        &mut self,
        name: &str,
        link: Link,
        incarnation: Incarnation,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        let steady = !matches!(self.phase, Phase::Recovering { .. });
        let view = (*self.view).clone();
        let Some(server) = self.servers.get_mut(name) else { return };
        server.link = Some((link, incarnation));
        server.open = 1;
        server.beat_due = now + self.settings.heartbeat;
        out.push(Effect::ToServer { link, message: ToServer::Beat });
        server.reported = steady && server.up == Some(incarnation);
        if server.reported {
            // It may have missed the newest view with its connection.
            server.open += 1;
            out.push(Effect::ToServer { link, message: ToServer::SetView(view) });
        }
    }

    pub(super) fn server_closed(&mut self, link: Link) {
        for server in self.servers.values_mut() {
            if server.link.is_some_and(|(current, _)| current == link) {
                server.link = None;
                server.open = 0;
                server.reported = false;
            }
        }
    }

    pub(super) fn server_absent(&mut self, name: &str, out: &mut Vec<Effect>) {
        let Some(server) = self.servers.get_mut(name) else { return };
        server.known = true;
        if server.link.is_none() && server.up.is_some() {
            self.server_down(name, "nobody listens at its socket", out);
        }
    }

    pub(super) fn server_report(
        &mut self,
        link: Link,
        mut report: ServerReport,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        let found = self.servers.iter_mut().find(|(_, server)| server.link.is_some_and(|(at, _)| at == link));
        let Some((name, server)) = found else { return };
        let name = name.clone();
        server.open = server.open.saturating_sub(1);
        server.known = true;
        let first = !std::mem::replace(&mut server.reported, true);
        let incarnation = report.incarnation;
        server.link = Some((link, incarnation));
        let epoch = report.epoch;
        if let Some(numbers) = report.numbers.take() {
            server.numbers = *numbers;
        }
        (server.report, server.report_at) = (report, now);
        if matches!(self.phase, Phase::Recovering { .. }) {
            server.heard = now;
            return;
        }
        if server.up == Some(incarnation) {
            server.heard = server.heard.max(now);
            server.confirmed = server.confirmed.max(epoch);
            if server.confirmed >= self.view.epoch {
                server.behind_since = None;
            }
            self.above(epoch);
            return;
        }
        if server.up.is_some() {
            self.server_down(&name, "a newer life of it reports", out);
        }
        self.admit(&name, incarnation, first, now, out);
        self.above(epoch);
    }

    pub(super) fn server_old_term(&mut self, link: Link, epoch: Epoch) {
        let found = self.servers.values_mut().find(|server| server.link.is_some_and(|(at, _)| at == link));
        let Some(server) = found else { return };
        server.open = server.open.saturating_sub(1);
        self.above(epoch);
    }

    /// Lets a reported life into the view, unless it was in one before and was dropped (R6).
    fn admit(
        &mut self,
        name: &str,
        incarnation: Incarnation,
        first: bool,
        now: Moment,
        out: &mut Vec<Effect>,
    ) {
        let alone = self.servers.values().all(|server| server.up.is_none());
        let Some(server) = self.servers.get(name) else { return };
        if server.is_barred(incarnation) {
            if first {
                self.tell_dropped(name, out);
            }
            return;
        }
        let old = server.report.view.clone().filter(|view| view.server(incarnation).is_some());
        if let Some(old) = old {
            // It was in a view of an earlier director. If no server told about that before, the cluster is
            // taken up from here; otherwise the newest view known has dropped it.
            if !(alone && self.take_up_late(&old, now, out)) && holds(Rule::R6AckIncarnation) {
                if let Some(server) = self.servers.get_mut(name) {
                    server.bar(incarnation);
                }
                self.tell_dropped(name, out);
                return;
            }
        }
        let Some(server) = self.servers.get_mut(name) else { return };
        server.up = Some(incarnation);
        server.heard = now;
        server.confirmed = Epoch::default();
        self.changed = true;
        out.push(Effect::Log(format!("server {name} is up as {:x}", incarnation.0)));
    }

    /// Sends the view that drops it to a server, which then begins a new life.
    fn tell_dropped(&mut self, name: &str, out: &mut Vec<Effect>) {
        let view = (*self.view).clone();
        let Some(server) = self.servers.get_mut(name) else { return };
        if let Some((link, _)) = server.link {
            server.open += 1;
            out.push(Effect::ToServer { link, message: ToServer::SetView(view) });
        }
    }

    pub(super) fn silent_servers(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Recovering { .. }) {
            return;
        }
        let silence = self.settings.silence;
        let up = self.servers.iter().filter_map(|(name, server)| Some((name, server, server.up?)));
        let judged: Vec<(String, Verdict)> = up
            .map(|(name, server, up)| (name.clone(), server.judge(|| self.server_seen(up), silence, now)))
            .collect();
        for (name, verdict) in judged {
            match verdict {
                Verdict::Heard => {}
                Verdict::Spared => self.spare_server(&name, out),
                Verdict::Silent => self.server_down(&name, "it is silent", out),
            }
        }
    }

    /// Tells and counts a silent server that is spared, once for each silence.
    fn spare_server(&mut self, name: &str, out: &mut Vec<Effect>) {
        let Some(server) = self.servers.get_mut(name) else { return };
        if server.spared.replace(server.heard) != Some(server.heard) {
            self.spared += 1;
            out.push(Effect::Log(format!("server {name} is not heard, but web nodes see it beat")));
        }
    }

    pub(super) fn beat_servers(&mut self, now: Moment, out: &mut Vec<Effect>) {
        for server in self.servers.values_mut() {
            let Some((link, _)) = server.link else { continue };
            if server.open < limits::BEATS_OPEN_MAX && now >= server.beat_due {
                server.open += 1;
                server.beat_due = now + self.settings.heartbeat;
                out.push(Effect::ToServer { link, message: ToServer::Beat });
            }
        }
    }

    fn server_down(&mut self, name: &str, why: &str, out: &mut Vec<Effect>) {
        let Some(server) = self.servers.get_mut(name) else { return };
        let Some(incarnation) = server.up.take() else { return };
        server.bar(incarnation);
        server.behind_since = None;
        let confirmed = server.confirmed;
        self.left_unconfirmed(confirmed);
        self.shrinks = true;
        self.changed = true;
        out.push(Effect::Log(format!("server {name} ({:x}) is down: {why}", incarnation.0)));
    }
}
