//! The phases of a request, as functions in their order: admit, identify, keep the body, choose, send, judge,
//! answer.

use crate::limits;
use crate::metrics::{Metrics, Outcome};
use crate::proxy::body::{InBody, Kept, Unkept};
use crate::proxy::headers;
use crate::proxy::linger::Asked;
use crate::proxy::routes::{Choice, Routes, Table};
use crate::proxy::upstream::{Place, Upstream};
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Scheme, Uri};
use hyper::{Method, Request, Response, StatusCode, Version};
use selvage_fabric::config::Config;
use selvage_fabric::ident::{Cookie, CookieKey, Incarnation};
use selvage_fabric::limits::ELSEWHERE_MAX;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The proxy's settings and shared state.
#[derive(Debug)]
pub struct Proxy {
    cookie_name: String,
    keys: Vec<CookieKey>,
    hold: Duration,
    resend_body_bytes: usize,
    requests_max: usize,
    routes: Arc<Routes>,
    metrics: Arc<Metrics>,
    under_way: AtomicUsize,
    /// Requests that wait for a node wait no longer than this.
    stop: CancellationToken,
    closing: AtomicBool,
}

/// A request's place among those under way.
#[derive(Debug)]
pub struct Admitted(Arc<Proxy>);

/// A response to a browser.
pub type Answer = Response<InBody<Admitted>>;

/// Why a request ends without a node's answer.
#[derive(Debug)]
enum Failure {
    TooMany,
    NotForward,
    BodyLate,
    BodyBroken(hyper::Error),
    Unrouted(&'static str),
    NotRepeatable,
    TooManyElsewhere,
    NodeLate,
    Lost(String),
}

/// What came of one send.
enum Sent {
    Answered(Response<Incoming>, Place),
    /// Nothing can have reached the node.
    Unsent,
    /// The node may have taken it.
    Lost(String),
    Late,
}

/// What a request has been through.
struct Way {
    deadline: Instant,
    directed: Option<Incarnation>,
    refused: Vec<Incarnation>,
    elsewhere: u32,
    sends: u32,
    watch: watch::Receiver<Arc<Table>>,
}

impl Proxy {
    /// From the configuration.
    pub fn new(config: &Config, routes: Arc<Routes>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            cookie_name: config.session.cookie_name.clone(),
            keys: config.cluster.cookie_keys.clone(),
            hold: Duration::from_millis(config.director.hold_ms),
            resend_body_bytes: config.director.resend_body_bytes,
            requests_max: config.director.requests_max,
            routes,
            metrics,
            under_way: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// From now on every answer is the last one on its connection.
    pub fn close_connections(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Requests that wait for a node do so no longer.
    pub fn give_up(&self) {
        self.stop.cancel();
    }

    /// Waits until there is a view to route by.
    pub async fn recovered(&self) {
        self.routes.recovered().await;
    }

    /// A request from its head to its answer. Never fails: what goes wrong is an answer, too.
    pub async fn serve(self: Arc<Self>, request: Request<Asked>, client: IpAddr) -> Answer {
        let unread = request.body().unread();
        let answer = match Self::admit(&self) {
            Ok(admitted) => self.pass(request, client, admitted).await,
            Err(failure) => Err(failure),
        };
        let mut answer = match answer {
            Ok(answer) => {
                self.metrics.request(Outcome::of(answer.status()));
                answer
            }
            Err(failure) => {
                self.metrics.request(failure.outcome());
                failure.answer()
            }
        };
        // Refused, or sent elsewhere, before all of it has come: nobody needs the rest.
        let refused = unread.any() && !answer.status().is_success();
        if refused {
            unread.refuse();
        }
        if refused || self.closing.load(Ordering::Relaxed) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    /// Phase 1: no more requests at once than configured.
    fn admit(self: &Arc<Self>) -> Result<Admitted, Failure> {
        let admitted = Admitted(Arc::clone(self));
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        if before >= self.requests_max { Err(Failure::TooMany) } else { Ok(admitted) }
    }

    async fn pass(
        &self,
        request: Request<Asked>,
        client: IpAddr,
        admitted: Admitted,
    ) -> Result<Answer, Failure> {
        let (mut head, body) = request.into_parts();
        let session = self.identify(&mut head, client)?;
        let body = Kept::take(body, self.resend_body_bytes).await.map_err(Failure::from)?;
        let mut way = Way {
            deadline: Instant::now() + self.hold,
            directed: None,
            refused: Vec::new(),
            elsewhere: 0,
            sends: 0,
            watch: self.routes.watch(),
        };
        loop {
            let place = self.choose(session, &mut way).await?;
            let sent = self.send(place, &head, &body, &mut way).await?;
            if let Some(response) = self.judge(sent, &head.method, &body, &mut way).await? {
                return Ok(answer(response, admitted));
            }
        }
    }

    /// Phase 2: the session that the request belongs to; the head made fit for a node.
    fn identify(&self, head: &mut Parts, client: IpAddr) -> Result<Option<Cookie>, Failure> {
        if head.method == Method::CONNECT || head.uri.path_and_query().is_none() {
            return Err(Failure::NotForward);
        }
        if !headers::names_one_host(&head.headers, head.version) {
            return Err(Failure::NotForward);
        }
        // A request in absolute form names its host there, whatever the header says (RFC 9112, 3.2.2).
        if let Some(authority) = head.uri.authority() {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Failure::NotForward)?;
            if !headers::is_host(&host) {
                return Err(Failure::NotForward);
            }
            head.headers.insert(HOST, host);
        }
        headers::for_node(&mut head.headers, client);
        head.version = Version::HTTP_11;
        Ok(headers::session(&head.headers, &self.cookie_name, &self.keys))
    }

    // Phase 3, keeping the body, is `Kept::take`.

    /// Phase 4: a place at the node that hosts the session, or will; waits for the view, bounded.
    async fn choose(&self, session: Option<Cookie>, way: &mut Way) -> Result<Held, Failure> {
        loop {
            let table = way.watch.borrow_and_update().clone();
            // A node that has just refused is tried again after a pause, unless the view changes before.
            let mut pause = None;
            let why = match self.routes.choose(&table, session, way.directed, &way.refused) {
                Choice::Go(upstream) if way.refused.contains(&upstream.incarnation) => {
                    pause = Some(limits::REFUSED_PAUSE);
                    "the web node cannot be reached"
                }
                Choice::Go(upstream) => {
                    let place = upstream.enter();
                    // Whoever waits for this node to become idle has set the hold before it looked at the
                    // places, so either it sees this place or this sees the hold.
                    if self.routes.now().takes(upstream.incarnation) {
                        return Ok(Held { upstream, place });
                    }
                    drop(place);
                    // Had the table changed before the watch was looked at, this returns at once.
                    "the view changes"
                }
                Choice::Wait(why) => {
                    pause = (!way.refused.is_empty()).then_some(limits::REFUSED_PAUSE);
                    why
                }
            };
            way.refused.clear();
            if way.directed.is_some_and(|directed| table.upstream(directed).is_none()) {
                way.directed = None;
            }
            way.wait(pause, why, &self.stop).await?;
        }
    }

    /// Phase 5: sends the request to the node.
    async fn send(&self, held: Held, head: &Parts, body: &Kept, way: &mut Way) -> Result<Sent, Failure> {
        let Held { upstream, place } = held;
        let body = body.again().ok_or(Failure::NotRepeatable)?;
        let mut request = Request::new(body);
        *request.uri_mut() = uri_at(&upstream, &head.uri)?;
        *request.method_mut() = head.method.clone();
        *request.headers_mut() = head.headers.clone();
        if request.body().size_hint().exact().is_none() {
            // Unasked, hyper sends no body of unknown length with a GET: the node would see another request.
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if way.sends > 0 {
            self.metrics.retries.inc();
        }
        way.sends += 1;
        let answered = tokio::time::timeout(limits::RESPONSE_WAIT, upstream.client.request(request)).await;
        Ok(match answered {
            Err(_) => Sent::Late,
            // A zombie's answers go nowhere, not even one that came in just before the cut.
            Ok(Ok(_)) if upstream.is_cut() => Sent::Lost("the web node is gone".to_owned()),
            Ok(Ok(response)) => Sent::Answered(response, place),
            Ok(Err(error)) if error.is_connect() => {
                way.refused.push(upstream.incarnation);
                Sent::Unsent
            }
            Ok(Err(error)) => {
                // One worker may have died while the node lives on, so the next try may go there again, after
                // a pause.
                way.refused.push(upstream.incarnation);
                Sent::Lost(error.to_string())
            }
        })
    }

    /// Phase 6: an answer, or another try. Never a second send of what may not be repeated.
    async fn judge(
        &self,
        sent: Sent,
        method: &Method,
        body: &Kept,
        way: &mut Way,
    ) -> Result<Option<(Response<Incoming>, Place)>, Failure> {
        match sent {
            // The director asks for no other protocol, so there is no connection to give away.
            Sent::Answered(response, _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(Failure::Lost("it switched to another protocol unasked".to_owned()))
            }
            Sent::Answered(response, _) if !headers::names_one_length(response.headers()) => {
                Err(Failure::Lost("its answer has more than one length".to_owned()))
            }
            Sent::Answered(response, place) => {
                let elsewhere = match response.status() {
                    StatusCode::MISDIRECTED_REQUEST => headers::elsewhere(response.headers()),
                    _ => None,
                };
                let Some(host) = elsewhere else { return Ok(Some((response, place))) };
                // "Elsewhere" says that the node has done nothing, so any method may be sent on.
                self.metrics.elsewhere.inc();
                if self.routes.now().upstream(host).is_none() {
                    // The node goes by an older view, in which that host still lives: it will have the newer
                    // one soon.
                    way.wait(Some(limits::BEHIND_PAUSE), "the web node's view is behind", &self.stop).await?;
                    return Ok(None);
                }
                way.elsewhere += 1;
                if way.elsewhere > ELSEWHERE_MAX {
                    return Err(Failure::TooManyElsewhere);
                }
                way.directed = Some(host);
                Ok(None)
            }
            Sent::Unsent => Ok(None),
            // It may have been carried out: only what may be done twice is sent again.
            Sent::Lost(_)
                if method.is_idempotent() && body.again().is_some() && way.sends < limits::SENDS_MAX =>
            {
                Ok(None)
            }
            Sent::Lost(why) => Err(Failure::Lost(why)),
            Sent::Late => Err(Failure::NodeLate),
        }
    }
}

/// Phase 7: the node's answer for the browser.
fn answer((response, place): (Response<Incoming>, Place), admitted: Admitted) -> Answer {
    let (mut head, body) = response.into_parts();
    headers::for_browser(&mut head.headers);
    head.version = Version::HTTP_11;
    Response::from_parts(head, InBody::Node { body, place, admitted })
}

/// A chosen node and the request's place there.
struct Held {
    upstream: Arc<Upstream>,
    place: Place,
}

impl Way {
    /// Waits for another table, at most `pause` if given, never past the deadline.
    async fn wait(
        &mut self,
        pause: Option<Duration>,
        why: &'static str,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(Failure::Unrouted(why));
        }
        let until = pause.map_or(self.deadline, |pause| self.deadline.min(now + pause));
        tokio::select! {
            () = stop.cancelled() => Err(Failure::Unrouted("the director stops")),
            // The next table, or the time: the caller looks at both.
            _ = tokio::time::timeout_at(until, self.watch.changed()) => Ok(()),
        }
    }
}

fn uri_at(upstream: &Upstream, asked: &Uri) -> Result<Uri, Failure> {
    let path = asked.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(upstream.authority.clone())
        .path_and_query(path)
        .build()
        .map_err(|_| Failure::NotForward)
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl From<Unkept> for Failure {
    fn from(unkept: Unkept) -> Self {
        match unkept {
            Unkept::Late => Self::BodyLate,
            Unkept::Broken(error) => Self::BodyBroken(error),
        }
    }
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotForward | Self::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Self::BodyLate => StatusCode::REQUEST_TIMEOUT,
            Self::TooMany | Self::Unrouted(_) | Self::NotRepeatable | Self::TooManyElsewhere => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::NodeLate => StatusCode::GATEWAY_TIMEOUT,
            Self::Lost(_) => StatusCode::BAD_GATEWAY,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::TooMany => Outcome::Refused,
            Self::NotForward | Self::BodyBroken(_) | Self::BodyLate => Outcome::BadRequest,
            Self::Unrouted(_) | Self::NotRepeatable | Self::TooManyElsewhere => Outcome::Unrouted,
            Self::NodeLate | Self::Lost(_) => Outcome::Lost,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::TooMany => "too many requests are under way; try again".to_owned(),
            Self::NotForward => "this is no request that a proxy for web servers can pass on".to_owned(),
            Self::BodyLate => {
                format!("the request body did not come within {} s", limits::BODY_WAIT.as_secs())
            }
            Self::BodyBroken(error) => format!("the request body cannot be read: {error}"),
            Self::Unrouted(why) => format!("no web node can take the request now ({why}); try again"),
            Self::NotRepeatable => {
                "the session has moved and the request body is too large to be kept for sending it again; \
                 send a request without a large body first"
                    .to_owned()
            }
            Self::TooManyElsewhere => "the session is being moved; try again".to_owned(),
            Self::NodeLate => {
                format!("the web node did not answer within {} s", limits::RESPONSE_WAIT.as_secs())
            }
            Self::Lost(why) => {
                format!(
                    "the web node was lost after it may have begun the request, which is not repeated ({why})"
                )
            }
        }
    }

    fn answer(self) -> Answer {
        let text = format!("selvage: {}\n", self.text());
        let mut answer = Response::new(InBody::Own(Some(Bytes::from(text))));
        *answer.status_mut() = self.status();
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }
}
