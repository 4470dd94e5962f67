//! An application behind nginx: an HTTP server whose answers a test writes byte by byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the application is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The server; its threads end with the test's process.
pub struct App {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// How an answer is written.
pub type Writer<'a> = &'a mut dyn FnMut(&[u8]);

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// A part of the query, `name=value`, as it stands there.
    pub fn query(&self, name: &str) -> Vec<&str> {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(known, _)| *known == name).map(|(_, value)| value).collect()
    }
}

impl App {
    /// Serves every connection for one request by `answer`, each on a thread of its own.
    pub fn start(answer: impl Fn(&Asked, Writer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, book) = (Arc::new(answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, book) = (Arc::clone(&answer), Arc::clone(&book));
                std::thread::spawn(move || serve(stream, &*answer, &book));
            }
        });
        Self { address, asked }
    }

    /// Answers 200 with the headers that the query's `h` parts are, and says in the body which headers that
    /// begin with `X-` came.
    pub fn echo() -> Self {
        Self::start(|asked, write| {
            let headers: String = asked
                .query("h")
                .iter()
                .map(|header| format!("{}\r\n", header.replacen(':', ": ", 1)))
                .collect();
            let seen = asked.headers.iter().filter(|(name, _)| name.to_ascii_lowercase().starts_with("x-"));
            let body: String = seen.map(|(name, value)| format!("{name}={value}\n")).collect();
            let status = asked.query("status").first().map_or("200 OK", |status| *status).replace('+', " ");
            if status.starts_with("204") {
                return write(format!("HTTP/1.1 {status}\r\n{headers}\r\n").as_bytes());
            }
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
            write(head.as_bytes());
            if asked.method != "HEAD" {
                write(body.as_bytes());
            }
        })
    }

    /// For `proxy_pass`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

fn serve(stream: TcpStream, answer: &(dyn Fn(&Asked, Writer) + Send + Sync), book: &Mutex<Vec<Asked>>) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
    let mut stream = BufReader::new(stream);
    let Some(asked) = read(&mut stream) else { return };
    book.lock().expect("no panic").push(asked.clone());
    answer(&asked, &mut |bytes| {
        // nginx may have given up on this request, which is its right.
        let _ = stream.get_mut().write_all(bytes);
    });
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut asked = Asked { method, path, headers, body: Vec::new() };
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    asked.body.resize(length, 0);
    stream.read_exact(&mut asked.body).ok()?;
    Some(asked)
}
