//! A real HTTP/1.1 client with a cookie, on hyper: what a browser would do, and nothing smarter. It never
//! retries a request whose bytes may have left.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use selvage_fabric::ident::{Incarnation, SessionId};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// Longest time for one request; longer than the director holds any.
pub const REQUEST_WAIT: Duration = Duration::from_secs(15);

/// One keep-alive connection.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its header.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// The value of a session cookie, taken apart without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieValue {
    /// All of it.
    pub text: String,
    /// The session.
    pub id: SessionId,
    /// The node incarnation that hosts it.
    pub host: Incarnation,
}

impl Connection {
    /// A connection that is made at the first request, and again when the peer has closed it.
    pub fn to(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// Sends one request and reads the whole response.
    ///
    /// # Errors
    /// The connection failed or [`REQUEST_WAIT`] is over. The request may have been carried out.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        cookie: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "selvage.test");
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let request = request.body(Full::new(body.into()))?;
        let answer = tokio::time::timeout(REQUEST_WAIT, self.exchange(request)).await;
        let answer = answer.unwrap_or_else(|_| bail!("no answer within {REQUEST_WAIT:?}"));
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let sender = self.connected().await?;
        let response = sender.send_request(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    /// The open connection; a new one if there is none or the peer has closed it.
    async fn connected(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let mut open = self.sender.take();
        if let Some(sender) = &mut open
            && sender.ready().await.is_err()
        {
            open = None;
        }
        if open.is_none() {
            let stream = TcpStream::connect(self.address).await;
            let stream = stream.with_context(|| format!("cannot connect to {}", self.address))?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            open = Some(sender);
        }
        self.sender = open;
        self.sender.as_mut().context("the connection was just made")
    }
}

impl Answer {
    /// The safe copies that the web node reports, if it does.
    pub fn copies(&self) -> Option<u32> {
        self.headers.get("selvage-copies")?.to_str().ok()?.parse().ok()
    }

    /// The session cookie that the answer sets; `None` if it sets none or clears it.
    pub fn cookie(&self) -> Option<CookieValue> {
        self.set_cookies().find_map(|cookie| CookieValue::parse(cookie.split(';').next()?.split_once('=')?.1))
    }

    /// Whether the answer clears the session cookie.
    pub fn clears_cookie(&self) -> bool {
        self.set_cookies().any(|cookie| cookie.to_ascii_lowercase().contains("max-age=0"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as a number, as `incr` answers it.
    pub fn number(&self) -> Option<i64> {
        self.text().trim().parse().ok()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{} answer is not JSON: {}", self.status, self.text()))
    }

    fn set_cookies(&self) -> impl Iterator<Item = &str> {
        self.headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok())
    }
}

impl CookieValue {
    /// Takes a value of the form `<id>-<tag>-<mac>` apart; the mac is not checked.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (id, host) = (SessionId::parse(parts.next()?)?, Incarnation::from_tag(parts.next()?)?);
        parts.next()?;
        Some(Self { text: text.to_owned(), id, host })
    }
}

/// A browser: a connection and the session cookie.
#[derive(Debug)]
pub struct Browser {
    connection: Connection,
    /// The session cookie that it keeps.
    pub cookie: Option<CookieValue>,
}

impl Browser {
    /// A browser that has never been there.
    pub fn new(address: SocketAddr) -> Self {
        Self { connection: Connection::to(address), cookie: None }
    }

    /// A browser that has a cookie already.
    pub fn with_cookie(address: SocketAddr, cookie: CookieValue) -> Self {
        Self { connection: Connection::to(address), cookie: Some(cookie) }
    }

    /// Sends a request with the cookie, and keeps the one that comes back.
    ///
    /// # Errors
    /// See [`Connection::send`]. An error status is an answer.
    pub async fn send(&mut self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let cookie = self.cookie.as_ref().map(|cookie| format!("selvage={}", cookie.text));
        let answer = self.connection.send(method, path, cookie.as_deref(), body).await?;
        if let Some(cookie) = answer.cookie() {
            self.cookie = Some(cookie);
        } else if answer.clears_cookie() {
            self.cookie = None;
        }
        Ok(answer)
    }

    /// `GET`.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// `PUT`.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn put(&mut self, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        self.send(Method::PUT, path, body).await
    }

    /// `POST`.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn post(&mut self, path: &str) -> Result<Answer> {
        self.send(Method::POST, path, Bytes::new()).await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// See [`Self::send`].
    pub async fn delete(&mut self, path: &str) -> Result<Answer> {
        self.send(Method::DELETE, path, Bytes::new()).await
    }
}
