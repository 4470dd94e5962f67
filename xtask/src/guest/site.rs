//! Guests at work: started together, watched, asked for by the test in guest 0, and ended.
//!
//! One guest alone has two soft-RoCE devices on a veth pair. Several are hosts of one network, each with one
//! device; then guest 0 runs the program and asks, through its port `control`, for power and cables.

use super::qemu::{Machine, Running};
use super::switch::Switch;
use super::{Ground, Work};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long guest 0 may take from its start to its program's.
const BOOT_MAX: Duration = Duration::from_secs(180);
/// How long it may take to go off when its program has ended.
const OFF_MAX: Duration = Duration::from_secs(10);
/// What `timeout` ends with, too.
const TIMED_OUT: u8 = 124;

/// What guests are to be like.
pub struct Site {
    /// Number of guests beside guest 0, if the guests are hosts of one network.
    pub hosts: Option<u8>,
    /// Memory of each, in MiB.
    pub memory_mib: u32,
    /// Processors of each.
    pub processors: u32,
    /// When they are ended, counted from their start.
    pub limit: Duration,
    /// Whether to say what the consoles said also if all went well.
    pub shows_consoles: bool,
}

/// How the program of guest 0 ended.
#[derive(Debug)]
pub struct End {
    /// Its status.
    pub code: u8,
    /// What it wrote to its standard output, which was shown already.
    pub stdout: String,
    /// What was in the file that was wanted.
    pub results: Vec<u8>,
    /// How long the guest took to come up.
    pub boot: Duration,
}

enum Event {
    /// A line from the status port of a guest.
    Status(u8, String),
    /// The machine went off, in the guest's nth life.
    Off(u8, u32),
    /// A line from the control port.
    Asked(String),
}

impl Site {
    /// Runs the program of `work` in guest 0, with all other guests around it, and shows what it says.
    ///
    /// # Errors
    /// A guest could not be made, or guest 0 did not come up or went off.
    pub fn run(&self, ground: &Ground, work: &Work) -> Result<End> {
        let initramfs = work.image(&ground.kernel)?.write()?;
        let (events, heard) = mpsc::channel();
        let mut house = House {
            site: self,
            ground,
            initramfs,
            switch: Switch::default(),
            rooms: BTreeMap::new(),
            lives: 0,
            events,
            outputs: Vec::new(),
            control: None,
        };
        let end = house.run(&heard);
        if self.shows_consoles || end.is_err() {
            house.show_consoles();
        }
        end
    }
}

/// The guests while they run; dropping it kills them.
struct House<'a> {
    site: &'a Site,
    ground: &'a Ground,
    initramfs: File,
    switch: Switch,
    rooms: BTreeMap<u8, Room>,
    lives: u32,
    events: Sender<Event>,
    /// Threads that show what guest 0 says; they end with the machine.
    outputs: Vec<JoinHandle<Vec<u8>>>,
    control: Option<UnixStream>,
}

struct Room {
    life: u32,
    machine: Running,
}

impl House<'_> {
    fn run(&mut self, heard: &Receiver<Event>) -> Result<End> {
        let began = Instant::now();
        for guest in 0..=self.site.hosts.unwrap_or(0) {
            self.start(guest)?;
        }
        let mut boot = None;
        let code = loop {
            let limit = if boot.is_none() { self.site.limit.min(BOOT_MAX) } else { self.site.limit };
            let left = limit.saturating_sub(began.elapsed());
            let event = match heard.recv_timeout(left) {
                Ok(event) => event,
                Err(RecvTimeoutError::Disconnected) => bail!("the guests cannot be heard"),
                Err(RecvTimeoutError::Timeout) => {
                    ensure!(boot.is_some(), "the guest did not come up in {} s", limit.as_secs());
                    eprintln!("guest: ended after {} s", limit.as_secs());
                    break TIMED_OUT;
                }
            };
            match event {
                Event::Asked(line) => self.answer(&line)?,
                Event::Off(guest, life) => self.off(guest, life)?,
                Event::Status(0, line) => match line.split_once(' ') {
                    Some(("ready", _)) => boot = Some(began.elapsed()),
                    Some(("exit", code)) => break code.parse::<u8>().context("no status")?,
                    _ => bail!("guest 0 did not come up: {line}"),
                },
                Event::Status(guest, line) if !line.starts_with("ready") => {
                    eprintln!("guest {guest}: {line}");
                }
                Event::Status(..) => {}
            }
        };
        if let Some(room) = self.rooms.get_mut(&0)
            && code != TIMED_OUT
        {
            room.machine.wait_until(Instant::now() + OFF_MAX)?;
        }
        self.rooms.values_mut().for_each(|room| room.machine.kill());
        // In the order of the ports.
        let mut said = self.outputs.drain(..).map(|output| output.join().unwrap_or_default());
        let stdout = String::from_utf8_lossy(&said.next().unwrap_or_default()).into_owned();
        let results = said.nth(1).unwrap_or_default();
        drop(said);
        if self.switch.dropped() > 0 {
            eprintln!("switch: {} frames dropped, their receivers were too slow", self.switch.dropped());
        }
        Ok(End { code, stdout, results, boot: boot.unwrap_or_default() })
    }

    fn start(&mut self, guest: u8) -> Result<()> {
        let hosts = self.site.hosts.is_some();
        let ports: &[&str] = match guest {
            0 => &["status", "stdout", "stderr", "results", "control"],
            _ => &["status", "stdout", "stderr"],
        };
        let machine = Machine {
            accelerator: self.ground.accelerator,
            kernel: &self.ground.kernel.image,
            initramfs: &self.initramfs,
            memory_mib: self.site.memory_mib,
            processors: self.site.processors,
            ports,
            host: hosts.then_some(guest),
            tsc_khz: self.ground.tsc_khz,
            is_trial: false,
        };
        let mut machine = machine.start()?;
        self.lives += 1;
        let life = self.lives;
        let mut ends = machine.ports.drain(..);
        if let Some(status) = ends.next() {
            let events = self.events.clone();
            thread::spawn(move || hear_status(status, guest, life, &events));
        }
        for (end, is_error) in ends.by_ref().take(2).zip([false, true]) {
            let output = thread::spawn(move || {
                // What agents say is no part of the program's output.
                if is_error || guest > 0 {
                    show(end, std::io::stderr())
                } else {
                    show(end, std::io::stdout())
                }
            });
            if guest == 0 {
                self.outputs.push(output);
            }
        }
        if let Some(results) = ends.next() {
            self.outputs.push(thread::spawn(move || show(results, std::io::sink())));
        }
        if let Some(control) = ends.next() {
            let (events, asked) = (self.events.clone(), control.try_clone()?);
            self.control = Some(control);
            thread::spawn(move || {
                let lines = BufReader::new(asked).lines().map_while(Result::ok);
                lines.take_while(|line| events.send(Event::Asked(line.clone())).is_ok()).for_each(drop);
            });
        }
        drop(ends);
        if let Some(cable) = &machine.cable {
            self.switch.plug(guest, cable)?;
        }
        self.rooms.insert(guest, Room { life, machine });
        Ok(())
    }

    /// A machine went off by itself, which none is asked to.
    fn off(&mut self, guest: u8, life: u32) -> Result<()> {
        if self.rooms.get(&guest).is_some_and(|room| room.life == life) {
            ensure!(guest > 0, "guest 0 went off");
            if let Some(room) = self.rooms.remove(&guest) {
                bail!("guest {guest} went off by itself; its console:\n{}", room.machine.console());
            }
        }
        Ok(())
    }

    fn answer(&mut self, line: &str) -> Result<()> {
        let answer = match self.carry_out(line) {
            Ok(()) => "ok\n".to_owned(),
            Err(error) => format!("{error:#}\n"),
        };
        let control = self.control.as_mut().context("nobody can have asked")?;
        control.write_all(answer.as_bytes()).context("guest 0 does not take an answer")
    }

    fn carry_out(&mut self, line: &str) -> Result<()> {
        let (what, guest) = parse(line)?;
        let last = self.site.hosts.unwrap_or(0);
        ensure!(guest <= last, "there are guests 0 to {last} only");
        match what {
            "cut" => self.switch.cut(guest, true),
            "join" => self.switch.cut(guest, false),
            "start" => {
                ensure!(!self.rooms.contains_key(&guest), "the guest is on");
                self.start(guest)?;
            }
            _ => {
                ensure!(guest > 0, "guest 0 runs the test");
                let room = self.rooms.get_mut(&guest).context("the guest is off")?;
                match what {
                    "pause" => room.machine.pause(true)?,
                    "resume" => room.machine.pause(false)?,
                    "kill" => {
                        room.machine.kill();
                        self.rooms.remove(&guest);
                        self.switch.unplug(guest);
                    }
                    _ => bail!("kill, start, cut, join, pause and resume are possible"),
                }
            }
        }
        Ok(())
    }

    fn show_consoles(&self) {
        for (guest, room) in &self.rooms {
            eprintln!("console of guest {guest}:\n{}", room.machine.console().trim_end());
        }
    }
}

fn parse(line: &str) -> Result<(&str, u8)> {
    let (what, guest) = line.trim().split_once(' ').context("a word and a guest's number are asked for")?;
    Ok((what, guest.parse().with_context(|| format!("{guest} is no guest's number"))?))
}

fn hear_status(status: UnixStream, guest: u8, life: u32, events: &Sender<Event>) {
    for line in BufReader::new(status).lines().map_while(Result::ok) {
        if events.send(Event::Status(guest, line)).is_err() {
            return;
        }
    }
    let _ = events.send(Event::Off(guest, life));
}

/// Passes on what a guest says, and keeps it.
fn show(mut from: impl Read, mut to: impl Write) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        // Whoever listened may have gone; the guest must not wait for that.
        let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_a_word_and_a_number() {
        assert_eq!(parse("kill 2\n").unwrap(), ("kill", 2));
        assert!(parse("kill").unwrap_err().to_string().contains("number"));
        assert!(parse("kill two").unwrap_err().to_string().contains("two"));
        assert!(parse("kill 300").is_err());
    }

    #[test]
    fn what_is_said_is_passed_on_and_kept() {
        let mut shown = Vec::new();
        assert_eq!(show(&b"some words"[..], &mut shown), b"some words");
        assert_eq!(shown, b"some words");
    }
}
