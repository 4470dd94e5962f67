//! An Ethernet switch for guests: each cable is a stream of frames behind their lengths, as QEMU's stream
//! network sends them.
//!
//! Like a real one it learns where addresses are, never waits for a slow receiver, and drops what does not
//! fit into a port's queue: a guest that hangs must not hold up the others.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// No guest sends a longer frame; whoever says so is not to be understood any more.
const FRAME_BYTES_MAX: usize = 65_536;
/// Shorter ones have no addresses.
const FRAME_BYTES_MIN: usize = 14;
/// How much waits for one guest.
const QUEUE_BYTES_MAX: usize = 16 << 20;

type Address = [u8; 6];

/// A switch; its clones are the same one.
#[derive(Clone, Default)]
pub struct Switch {
    inside: Arc<Inside>,
}

#[derive(Default)]
struct Inside {
    table: Mutex<Table>,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Table {
    ports: HashMap<u8, Port>,
    learned: HashMap<Address, u8>,
    cut: Vec<u8>,
}

struct Port {
    queue: Arc<Queue>,
    cable: UnixStream,
}

/// Frames on their way to one guest.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Arc<[u8]>>,
    bytes: usize,
    closed: bool,
}

impl Switch {
    /// Plugs a cable in. What was in that port before is out.
    ///
    /// # Errors
    /// The cable has no more descriptors.
    pub fn plug(&self, port: u8, cable: &UnixStream) -> io::Result<()> {
        self.unplug(port);
        let queue = Arc::new(Queue::default());
        let plugged = Port { queue: Arc::clone(&queue), cable: cable.try_clone()? };
        let (from, to) = (cable.try_clone()?, cable.try_clone()?);
        lock(&self.inside.table).ports.insert(port, plugged);
        let inside = Arc::clone(&self.inside);
        thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                let _ = inside.relay(port, from);
                queue.close();
            }
        });
        thread::spawn(move || queue.drain(to));
        Ok(())
    }

    /// Pulls a cable out for good.
    pub fn unplug(&self, port: u8) {
        let mut table = lock(&self.inside.table);
        table.learned.retain(|_, at| *at != port);
        if let Some(port) = table.ports.remove(&port) {
            let _ = port.cable.shutdown(Shutdown::Both);
            port.queue.close();
        }
    }

    /// Lets nothing pass to and from a port, or again everything.
    pub fn cut(&self, port: u8, is_cut: bool) {
        let mut table = lock(&self.inside.table);
        table.cut.retain(|other| *other != port);
        if is_cut {
            table.cut.push(port);
        }
    }

    /// How many frames were dropped because their receiver was too slow.
    pub fn dropped(&self) -> u64 {
        self.inside.dropped.load(Ordering::Relaxed)
    }
}

impl Inside {
    fn relay(&self, port: u8, mut cable: UnixStream) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut frames = Frames::default();
        loop {
            let count = cable.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            frames.take_in(&buffer[..count]);
            while let Some(frame) = frames.next()? {
                self.forward(port, frame);
            }
        }
    }

    fn forward(&self, from: u8, frame: Arc<[u8]>) {
        let targets: Vec<Arc<Queue>> = lock(&self.table).route(from, &frame);
        for queue in targets {
            if !queue.push(Arc::clone(&frame)) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Table {
    /// Where a frame goes, and what is to be learned from it.
    fn route(&mut self, from: u8, frame: &[u8]) -> Vec<Arc<Queue>> {
        let (Some(to), Some(source)) = (address(frame, 4), address(frame, 10)) else {
            return Vec::new();
        };
        if self.cut.contains(&from) {
            return Vec::new();
        }
        self.learned.insert(source, from);
        // The lowest bit of the first byte says that it is for many.
        let known = if to[0] & 1 == 0 { self.learned.get(&to) } else { None };
        let is_meant = |port: u8| port != from && known.is_none_or(|known| *known == port);
        let ports = self.ports.iter().filter(|(port, _)| is_meant(**port) && !self.cut.contains(port));
        ports.map(|(_, port)| Arc::clone(&port.queue)).collect()
    }
}

/// The address that begins at this byte of a frame with its length before it.
fn address(frame: &[u8], at: usize) -> Option<Address> {
    frame.get(at..at + 6)?.try_into().ok()
}

impl Queue {
    /// Takes a frame in; false if there is no room for it.
    fn push(&self, frame: Arc<[u8]>) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return true;
        }
        if waiting.bytes + frame.len() > QUEUE_BYTES_MAX {
            return false;
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back(frame);
        self.changed.notify_one();
        true
    }

    fn close(&self) {
        lock(&self.waiting).closed = true;
        self.changed.notify_all();
    }

    /// Sends until the cable is out.
    fn drain(&self, mut cable: UnixStream) {
        while let Some(frame) = self.pop() {
            if cable.write_all(&frame).is_err() {
                return self.close();
            }
        }
    }

    fn pop(&self) -> Option<Arc<[u8]>> {
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(frame) = waiting.frames.pop_front() {
                waiting.bytes -= frame.len();
                return Some(frame);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Cuts a stream into frames, each with its length before it, as it is passed on.
#[derive(Default)]
struct Frames {
    bytes: Vec<u8>,
    begin: usize,
}

impl Frames {
    fn take_in(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.begin);
        self.begin = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    fn next(&mut self) -> io::Result<Option<Arc<[u8]>>> {
        let rest = &self.bytes[self.begin..];
        let Some(Ok(length)) = rest.get(..4).map(<[u8; 4]>::try_from) else { return Ok(None) };
        let length = u32::from_be_bytes(length) as usize;
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let frame = rest.get(..4 + length).map(Arc::from);
        if frame.is_some() {
            self.begin += 4 + length;
        }
        Ok(frame)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const EVERYBODY: u8 = 0xff;

    /// A frame from one host to another; hosts are the last bytes of addresses.
    fn frame(to: u8, from: u8, filling: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, 0, 64];
        frame.extend([if to == EVERYBODY { [0xff; 6] } else { [0x52, 0, 0, 0, 0, to] }].concat());
        frame.extend([0x52, 0, 0, 0, 0, from]);
        frame.resize(4 + 64, filling);
        frame
    }

    fn hosts(switch: &Switch, count: u8) -> Vec<UnixStream> {
        let plug = |port| {
            let (mine, cable) = UnixStream::pair().unwrap();
            mine.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            switch.plug(port, &cable).unwrap();
            mine
        };
        (0..count).map(plug).collect()
    }

    fn received(mut host: &UnixStream) -> Vec<u8> {
        let mut bytes = vec![0; 68];
        host.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn nothing_for(mut host: &UnixStream) {
        host.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(host.read(&mut [0]).is_err(), "a frame came that was for another");
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }

    #[test]
    fn a_stream_falls_into_frames_wherever_it_is_cut() {
        let stream = [frame(1, 0, 7), frame(2, 0, 8)].concat();
        for cut in 0..stream.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                frames.take_in(part);
                while let Some(frame) = frames.next().unwrap() {
                    found.push(frame.to_vec());
                }
            }
            assert_eq!(found.concat(), stream, "cut at {cut}");
        }
        let mut frames = Frames::default();
        frames.take_in(&u32::MAX.to_be_bytes());
        assert!(frames.next().is_err());
    }

    #[test]
    fn what_is_for_all_goes_to_all_and_the_answer_to_one() {
        let switch = Switch::default();
        let hosts = hosts(&switch, 3);
        (&hosts[0]).write_all(&frame(EVERYBODY, 0, 1)).unwrap();
        for host in &hosts[1..] {
            assert_eq!(received(host), frame(EVERYBODY, 0, 1));
        }
        (&hosts[1]).write_all(&frame(0, 1, 2)).unwrap();
        assert_eq!(received(&hosts[0]), frame(0, 1, 2));
        nothing_for(&hosts[2]);
        nothing_for(&hosts[1]);
    }

    #[test]
    fn a_cut_port_is_silent_both_ways_until_it_is_joined() {
        let switch = Switch::default();
        let hosts = hosts(&switch, 2);
        switch.cut(1, true);
        (&hosts[0]).write_all(&frame(EVERYBODY, 0, 1)).unwrap();
        (&hosts[1]).write_all(&frame(EVERYBODY, 1, 2)).unwrap();
        nothing_for(&hosts[0]);
        nothing_for(&hosts[1]);
        switch.cut(1, false);
        (&hosts[0]).write_all(&frame(EVERYBODY, 0, 3)).unwrap();
        assert_eq!(received(&hosts[1]), frame(EVERYBODY, 0, 3));
    }

    #[test]
    fn a_receiver_that_hangs_holds_up_nobody_and_another_can_have_its_port() {
        let switch = Switch::default();
        let mut hosts = hosts(&switch, 3);
        // More than a queue and a socket hold, none of which host 1 takes.
        let mut large = frame(EVERYBODY, 0, 1);
        large.resize(4 + 9000, 1);
        large[2..4].copy_from_slice(&9000u16.to_be_bytes());
        let mut reader = hosts[2].try_clone().unwrap();
        let all = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            let mut sum = 0;
            while sum < QUEUE_BYTES_MAX {
                sum += reader.read(&mut buffer).unwrap();
            }
        });
        for _ in 0..2 * QUEUE_BYTES_MAX / large.len() {
            (&hosts[0]).write_all(&large).unwrap();
        }
        all.join().unwrap();
        assert!(switch.dropped() > 0);
        hosts.remove(1);
        switch.unplug(1);
        let (mut mine, cable) = UnixStream::pair().unwrap();
        mine.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        switch.plug(1, &cable).unwrap();
        (&hosts[0]).write_all(&frame(1, 0, 9)).unwrap();
        // Some of the many may still be on their way.
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while !all.ends_with(&frame(1, 0, 9)) {
            let count = mine.read(&mut buffer).unwrap();
            all.extend_from_slice(&buffer[..count]);
        }
    }
}
