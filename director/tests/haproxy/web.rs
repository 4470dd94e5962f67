//! The web server behind both proxies, which notes raw bytes; and how what it and the browser got is told.
//!
//! Told are requests and answers as any strict reader reads them: with bodies decoded, without headers that
//! both proxies may add or that only frame. So a chunked body is the same as one with a length.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Headers that frame, that are one hop's, or that proxies add.
const NOT_TOLD: [&str; 9] = [
    "content-length",
    "transfer-encoding",
    "keep-alive",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
];

/// A web server with one answer for all.
pub struct Web {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    switches: bool,
    serving: JoinHandle<()>,
}

impl Web {
    /// Answers each request with `answer`, or that it is good.
    pub async fn start(answer: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut notes = notes.lock().unwrap();
                    notes.push(Vec::new());
                    notes.len() - 1
                };
                let notes = Arc::clone(&notes);
                tokio::spawn(async move {
                    // A proxy may cut it at any time.
                    let _ = serve(stream, &notes, number, answer).await;
                });
            }
        });
        let switches = answer.is_some_and(switches);
        Self { address, seen, switches, serving }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has come, request by request, whatever connections it came on.
    pub fn seen(self) -> Vec<String> {
        self.serving.abort();
        let seen = self.seen.lock().unwrap();
        seen.iter().flat_map(|bytes| requests(bytes, self.switches)).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    notes: &Mutex<Vec<Vec<u8>>>,
    number: usize,
    answer: Option<&str>,
) -> std::io::Result<()> {
    let mut at = 0;
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        notes.lock().unwrap()[number] = bytes.clone();
        if bytes[at..].ends_with(b"\r\n\r\n")
            && latin(&bytes[at..]).to_lowercase().contains("\r\nexpect: 100")
        {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        while let Some(message) = message(&bytes[at..], true) {
            at += message.bytes;
            let is_head = message.line.starts_with("HEAD ");
            let good = if is_head {
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
            } else {
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            };
            stream.write_all(answer.unwrap_or(good).as_bytes()).await?;
            if answer.is_some_and(switches) {
                // What comes now comes back.
                loop {
                    let from = bytes.len();
                    if stream.read_buf(&mut bytes).await? == 0 {
                        return Ok(());
                    }
                    notes.lock().unwrap()[number] = bytes.clone();
                    stream.write_all(&bytes[from..]).await?;
                }
            }
        }
    }
}

fn switches(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 101 ")
}

/// A request or an answer.
struct Message {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<String>,
    bytes: usize,
}

/// The message at the beginning, if it is whole.
fn message(bytes: &[u8], has_body: bool) -> Option<Message> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = latin(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    let value =
        |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let rest = &bytes[end + 4..];
    let (body, trailers, length) = match (value("transfer-encoding"), value("content-length")) {
        _ if !has_body => (Vec::new(), Vec::new(), 0),
        (Some(_), _) => chunks(rest)?,
        (None, Some(length)) => {
            let length = length.parse().ok()?;
            (rest.get(..length)?.to_vec(), Vec::new(), length)
        }
        (None, None) => (Vec::new(), Vec::new(), 0),
    };
    Some(Message { line, headers, body, trailers, bytes: end + 4 + length })
}

fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, Vec<String>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = bytes[at..].windows(2).position(|window| window == b"\r\n")?;
        let size = latin(&bytes[at..at + line]);
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size == 0 {
            let mut trailers = Vec::new();
            loop {
                let line = bytes[at..].windows(2).position(|window| window == b"\r\n")?;
                let text = latin(&bytes[at..at + line]);
                at += line + 2;
                if text.is_empty() {
                    return Some((body, trailers, at));
                }
                trailers.push(text.to_ascii_lowercase());
            }
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
        bytes.get(..at)?;
    }
}

/// Requests on one connection, and what was none.
fn requests(mut bytes: &[u8], switches: bool) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(message) = message(bytes, true) {
        bytes = &bytes[message.bytes..];
        told.push(tell(&message));
        if switches && !bytes.is_empty() {
            told.push(format!("then \"{}\"", bytes.escape_ascii()));
            return told;
        }
    }
    if !bytes.is_empty() {
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        told.push(format!("broken off: {}", line.escape_ascii()));
    }
    told
}

fn tell(message: &Message) -> String {
    let mut text = message.line.clone();
    if text.len() > 60 {
        text = format!("{}… ({} bytes)", &text[..12], text.len());
    }
    let mut headers: Vec<String> = Vec::new();
    for (name, value) in &message.headers {
        let value = if name == "connection" { &value.to_ascii_lowercase() } else { value };
        // A connection that stays open is what everybody expects.
        let is_plain = name == "connection" && (value == "keep-alive" || value == "close");
        if !NOT_TOLD.contains(&&**name) && !is_plain && name != "host" {
            headers.push(if value.len() > 40 {
                format!("{name}…")
            } else {
                format!("{name}: {}", value.escape_default())
            });
        }
    }
    headers.sort();
    let hosts: Vec<&str> =
        message.headers.iter().filter(|(name, _)| name == "host").map(|(_, value)| value.as_str()).collect();
    if hosts != ["a"] {
        text.push_str(&format!(" host={}", hosts.join("+")));
    }
    for header in headers {
        text.push_str(&format!(" [{header}]"));
    }
    if !message.body.is_empty() {
        text.push_str(&format!(" \"{}\"", message.body.escape_ascii()));
    }
    for trailer in &message.trailers {
        text.push_str(&format!(" <{trailer}>"));
    }
    text
}

/// Answers, as their statuses and bodies.
pub fn answers(mut bytes: &[u8], methods: &[&str]) -> String {
    let mut told = Vec::new();
    let mut answered = 0;
    while !bytes.is_empty() {
        let is_interim = bytes.starts_with(b"HTTP/1.1 1") && !bytes.starts_with(b"HTTP/1.1 101");
        let is_head = methods.get(answered) == Some(&"HEAD");
        let Some(message) = message(bytes, !is_head && !is_interim) else {
            told.push("broken off".to_owned());
            break;
        };
        bytes = &bytes[message.bytes..];
        answered += usize::from(!is_interim);
        let status = message.line.get(9..12).unwrap_or("none").to_owned();
        // Words of the proxies themselves are their own.
        let body = match status.as_str() {
            "200" => latin(&message.body),
            _ => String::new(),
        };
        let trailers: String = message.trailers.iter().map(|trailer| format!(" <{trailer}>")).collect();
        told.push(format!("{status} {body}{trailers}").trim().to_owned());
        if status == "101" {
            if !bytes.is_empty() {
                told.push(format!("then \"{}\"", bytes.escape_ascii()));
            }
            break;
        }
    }
    if told.is_empty() { "closed".to_owned() } else { told.join(", ") }
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}
