//! A Redis server of our own on a Unix socket, and the leanest client that speaks to it: one connection, no
//! pipelining, requests formatted beforehand where possible. Being lean is to Redis's advantage, which keeps
//! the comparison honest.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running `redis-server` without persistence; killed and removed when dropped.
pub struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Redis {
    /// Starts `redis-server` in `folder`.
    ///
    /// # Errors
    /// If it is not installed (with the line that installs it) or does not answer within five seconds.
    pub fn start(folder: &Path) -> Result<Self> {
        let socket = folder.join("redis.sock");
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(folder)
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start redis-server; install it: apt-get install redis-server")?;
        let redis = Self { child, socket };
        let end = Instant::now() + Duration::from_secs(5);
        while UnixStream::connect(&redis.socket).is_err() {
            ensure!(Instant::now() < end, "redis-server did not open its socket within 5 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(redis)
    }

    /// Its process, to pin it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn client(&self) -> Result<Client> {
        let stream = UnixStream::connect(&self.socket).context("redis-server is gone")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Client { stream, buffer: vec![0; 64 << 10] })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Already dead is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection.
pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Client {
    /// Sends a formatted request and reads its one reply: a status line or a bulk string, whose length is
    /// returned.
    ///
    /// # Errors
    /// If the server answers an error or is gone.
    pub fn call(&mut self, request: &[u8]) -> Result<usize> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        loop {
            let more = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(more > 0, "redis-server closed the connection");
            filled += more;
            if let Some(length) = complete(&self.buffer[..filled])? {
                return Ok(length);
            }
            ensure!(filled < self.buffer.len(), "a reply of more than {filled} bytes");
        }
    }
}

/// The payload's length once `reply` is whole.
fn complete(reply: &[u8]) -> Result<Option<usize>> {
    let Some(line_end) = reply.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = std::str::from_utf8(&reply[1..line_end])?;
    match reply[0] {
        b'+' | b':' => Ok(Some(line.len())),
        b'$' => {
            let length: i64 = line.parse()?;
            let length = usize::try_from(length).context("the key is missing")?;
            Ok((reply.len() >= line_end + 2 + length + 2).then_some(length))
        }
        _ => bail!("redis-server answered {}", String::from_utf8_lossy(&reply[..line_end])),
    }
}

/// A request in the server's protocol.
pub fn request(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_whole_or_not() {
        assert_eq!(complete(b"+OK\r").unwrap(), None);
        assert_eq!(complete(b"+OK\r\n").unwrap(), Some(2));
        assert_eq!(complete(b"$3\r\nab").unwrap(), None);
        assert_eq!(complete(b"$3\r\nabc\r\n").unwrap(), Some(3));
        assert!(complete(b"-ERR\r\n").is_err());
        assert!(complete(b"$-1\r\n").is_err());
        assert_eq!(request(&[b"GET", b"k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }
}
