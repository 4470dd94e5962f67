//! A small HTTP/1.1 client that keeps one connection, so that tests see exactly what the module sends.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One answer.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// One connection, with the cookie of one browser.
pub struct Browser {
    stream: BufReader<TcpStream>,
    address: SocketAddr,
    pub cookie: Option<String>,
    /// The server has said that it closes this connection.
    closed: bool,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.body[..self.body.len().min(200)];
        write!(f, "{} {:?} {} bytes: ", self.status, self.headers, self.body.len())?;
        write!(f, "{:?}", String::from_utf8_lossy(start))
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

impl Browser {
    pub fn at(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("nginx listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        Self { stream: BufReader::new(stream), address, cookie: None, closed: false }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same browser at another server.
    pub fn go_to(&self, address: SocketAddr) -> Self {
        Self { cookie: self.cookie.clone(), ..Self::at(address) }
    }

    /// Writes bytes as they are, on a new connection if the server closes this one. Not before: a worker of
    /// nginx that ends waits for the first request of each connection that it has accepted.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.closed {
            *self = self.go_to(self.address);
        }
        self.stream.get_mut().write_all(bytes).expect("written");
    }

    /// A request's head, with the cookie.
    pub fn head(&self, method: &str, path: &str, more: &str) -> String {
        let cookie = self.cookie.as_ref().map_or(String::new(), |value| format!("Cookie: a=b; {value}\r\n"));
        format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{cookie}{more}\r\n")
    }

    pub fn send(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> Answer {
        let length = body.map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
        let mut request = self.head(method, path, &length).into_bytes();
        request.extend_from_slice(body.unwrap_or_default());
        self.write(&request);
        self.answer(method == "HEAD")
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    /// Whether nothing comes for so long.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        if !self.stream.buffer().is_empty() {
            return false;
        }
        self.stream.get_mut().set_read_timeout(Some(time)).expect("a time limit");
        let silent = match self.stream.get_mut().peek(&mut [0]) {
            Ok(bytes) => {
                assert!(bytes > 0, "the connection was closed");
                false
            }
            Err(error) => {
                // Who is stopped and goes on finds its wait interrupted.
                let late = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted];
                assert!(late.contains(&error.kind()), "{error}");
                true
            }
        };
        self.stream.get_mut().set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        silent
    }

    /// Asks on new connections until one is answered: a worker that was killed may have taken some with it.
    pub fn until_answered(&self, path: &str) -> Answer {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < end, "no answer");
            let mut one = self.go_to(self.address);
            let request = self.head("GET", path, "");
            if one.stream.get_mut().write_all(request.as_bytes()).is_err() {
                continue;
            }
            if one.stream.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
                return one.answer(false);
            }
        }
    }

    /// Reads one answer, and keeps or forgets the cookie as it says.
    pub fn answer(&mut self, without_body: bool) -> Answer {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a status line");
        let status = line.split(' ').nth(1).and_then(|number| number.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not an answer: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        if !without_body {
            if answer.header("transfer-encoding") == Some("chunked") {
                answer.body = self.chunks();
            } else {
                let length = answer.header("content-length").and_then(|length| length.parse().ok());
                answer.body.resize(length.unwrap_or(0), 0);
                self.stream.read_exact(&mut answer.body).expect("the body");
            }
        }
        if let Some(set) = answer.header("set-cookie") {
            let value = set.split(';').next().unwrap_or_default();
            self.cookie = (!value.ends_with('=')).then(|| value.to_owned());
        }
        self.closed = answer.header("connection") == Some("close");
        answer
    }

    /// Reads a chunked body.
    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a chunk's size");
            let size = usize::from_str_radix(line.trim(), 16).expect("a chunk's size");
            let start = body.len();
            body.resize(start + size + 2, 0);
            self.stream.read_exact(&mut body[start..]).expect("a chunk");
            body.truncate(start + size);
            if size == 0 {
                return body;
            }
        }
    }
}
