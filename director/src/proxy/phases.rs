//! The phases of a request, as functions in their order: admit, identify, keep the body, choose, send, judge,
//! answer.

use crate::access_log::Notes;
use crate::limits;
use crate::metrics::{Metrics, Outcome};
use crate::proxy::asked::{Asked, Progress};
use crate::proxy::body::{FromNode, InBody, Kept, OutBody};
use crate::proxy::browser::Upgrade;
use crate::proxy::client::Client;
use crate::proxy::expect::{self, Expected, Wish};
use crate::proxy::failure::Failure;
use crate::proxy::headers;
use crate::proxy::http2;
use crate::proxy::redirect::redirect;
use crate::proxy::routes::{Choice, Routes, Table};
use crate::proxy::settings::{Live, Settings};
use crate::proxy::tunnel::{self, Tunnel};
use crate::proxy::upstream::{Entry, Place, Upstream};
use arc_swap::ArcSwap;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, EXPECT, HOST, HeaderValue, TRAILER, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::http::uri::{PathAndQuery, Scheme, Uri};
use hyper::{Method, Request, Response, StatusCode, Version};
use selvage_fabric::config::Config;
use selvage_fabric::ident::{Cookie, Incarnation};
use selvage_fabric::limits::ELSEWHERE_MAX;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The proxy's settings and shared state.
#[derive(Debug)]
pub struct Proxy {
    settings: Live,
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

/// A node's answer, and what the request takes until it has ended.
struct Answered {
    response: Response<Incoming>,
    place: Place,
    wish: Option<Wish>,
}

/// What came of one send.
enum Sent {
    Answered(Box<Answered>),
    /// Nothing can have reached the node.
    Unsent,
    /// The node may have taken it.
    Lost(String),
    /// It has answered, and nobody can say what.
    Garbled(String),
    Late,
}

/// What a request has been through.
struct Way {
    /// For the wait for a node that can take it.
    deadline: Instant,
    /// For the wait for a place, once it waits for one.
    queue_deadline: Option<Instant>,
    /// Another protocol that the browser asks for.
    upgrade: Option<tunnel::Asked>,
    /// Whether the browser waits for `100 Continue`.
    is_awaited: bool,
    progress: Arc<Progress>,
    directed: Option<Incarnation>,
    refused: Vec<Incarnation>,
    elsewhere: u32,
    sends: u32,
    watch: watch::Receiver<Arc<Table>>,
    /// For the access log.
    notes: Option<Arc<Notes>>,
}

impl Proxy {
    /// From the configuration.
    pub fn new(config: &Config, routes: Arc<Routes>, metrics: Arc<Metrics>) -> Arc<Self> {
        routes.configure(config);
        Arc::new(Self {
            settings: Arc::new(ArcSwap::from_pointee(Settings::new(config))),
            routes,
            metrics,
            under_way: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            closing: AtomicBool::new(false),
        })
    }

    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What counts at each time.
    pub fn live(&self) -> Live {
        Arc::clone(&self.settings)
    }

    /// What counts for requests that begin now.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Takes another configuration; requests under way go on by the one that they began with.
    pub fn configure(&self, config: &Config) {
        self.routes.configure(config);
        self.settings.store(Arc::new(Settings::new(config)));
    }

    /// From now on every answer is the last one on its connection.
    pub fn close_connections(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether no request and no tunnel is under way, here or at a director that has handed over to this one.
    pub fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0 && self.routes.is_alone()
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
    pub async fn serve(self: Arc<Self>, request: Request<Asked>, client: Client) -> Answer {
        let settings = self.settings();
        let (browser, version) = (request.body().browser(), request.version());
        let progress = request.body().progress();
        let notes = request.extensions().get::<Arc<Notes>>().cloned();
        let under_way = self.metrics.begin(notes.clone());
        let (answering, fault) = browser.begin();
        let answer = match (fault, Self::admit(&self, &settings)) {
            (Some(fault), _) => {
                // What has come behind it will not be read.
                browser.heard();
                notes.iter().for_each(|notes| notes.is_no_request());
                Err(Failure::Framing(fault))
            }
            (None, Ok(admitted)) => match redirect(&request, client, &settings) {
                Some(answer) => Ok(answer),
                None => self.pass(request, client, &settings, admitted).await,
            },
            (None, Err(failure)) => Err(failure),
        };
        let (outcome, mut answer) = match answer {
            Ok(answer) => (Outcome::of(answer.status()), answer),
            Err(failure) => (failure.outcome(), failure.answer()),
        };
        under_way.end(outcome, answer.status());
        let is_switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        answering.decide_upgrade(if is_switched { Upgrade::Yes } else { Upgrade::No });
        answer.body_mut().answer(answering);
        if is_switched {
            return answer;
        }
        // Refused, or sent elsewhere, before all of it has come: nobody needs the rest. What has come behind
        // a whole request is the next one, and is answered.
        let is_cut = fault.is_some() || !progress.is_whole();
        let refused = is_cut && !answer.status().is_success();
        if refused {
            browser.refuse();
        }
        // An HTTP/2 connection ends in its own way.
        if version < Version::HTTP_2 && (refused || self.closing.load(Ordering::Relaxed)) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    /// Phase 1: no more requests at once than configured.
    fn admit(self: &Arc<Self>, settings: &Settings) -> Result<Admitted, Failure> {
        let admitted = Admitted(Arc::clone(self));
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        if before >= settings.requests_max { Err(Failure::TooMany) } else { Ok(admitted) }
    }

    async fn pass(
        self: &Arc<Self>,
        request: Request<Asked>,
        client: Client,
        settings: &Settings,
        admitted: Admitted,
    ) -> Result<Answer, Failure> {
        let (mut head, mut body) = request.into_parts();
        let progress = body.progress();
        let notes = head.extensions.remove::<Arc<Notes>>();
        body.bound(settings.body_bytes_max, settings.body_timeout)?;
        let is_awaited = match expect::expected(&head.headers, head.version) {
            Expected::Unknown => return Err(Failure::Expectation),
            expected => expected == Expected::Continue && !body.is_end_stream(),
        };
        let upgrade = tunnel::Asked::of(&mut head);
        let session = identify(&mut head, client, settings)?;
        if session.is_none() && headers::brings(&head.headers, &settings.cookie_name) {
            self.metrics.forged_cookies.inc();
        }
        let body = match is_awaited {
            true => Kept::unread(body),
            false => Kept::take(body, settings.resend_body_bytes, settings.body_timeout).await?,
        };
        if let Some(names) = body.trailers().and_then(headers::names_of) {
            head.headers.insert(TRAILER, names);
        }
        if let Some(upgrade) = &upgrade {
            upgrade.put(&mut head.headers);
        }
        let mut way = Way {
            deadline: Instant::now() + settings.hold,
            queue_deadline: None,
            upgrade,
            is_awaited,
            progress,
            directed: None,
            refused: Vec::new(),
            elsewhere: 0,
            sends: 0,
            watch: self.routes.watch(),
            notes,
        };
        loop {
            let held = self.choose(session, settings, &mut way).await?;
            let sent = self.send(held, &head, &body, settings, &mut way).await?;
            if let Some(answered) = self.judge(sent, &head.method, &body, &mut way).await? {
                return Ok(self.answer(*answered, admitted, settings, way.upgrade));
            }
        }
    }

    // Phase 3, keeping the body, is `Kept::take`.

    /// Phase 4: a place at the node that hosts the session, or will; waits for the view, bounded.
    async fn choose(
        &self,
        session: Option<Cookie>,
        settings: &Settings,
        way: &mut Way,
    ) -> Result<Held, Failure> {
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
                    let Some(place) = self.enter(&upstream, settings, way).await? else { continue };
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

    /// A place at the node, bounded in number and time; `None` if the node does not take requests any more.
    async fn enter(
        &self,
        upstream: &Arc<Upstream>,
        settings: &Settings,
        way: &mut Way,
    ) -> Result<Option<Place>, Failure> {
        let mut place = match upstream.enter(settings.queue_max) {
            Entry::Now(place) => return Ok(Some(place)),
            Entry::Full => return Err(Failure::QueueFull),
            Entry::Later(place) => place,
        };
        let _queued = self.metrics.queued();
        let begun = Instant::now();
        let deadline = *way.queue_deadline.get_or_insert(begun + settings.queue_timeout);
        let place = loop {
            tokio::select! {
                biased;
                place = &mut place => break place.ok(),
                () = self.stop.cancelled() => return Err(Failure::Unrouted("the director stops")),
                () = tokio::time::sleep_until(deadline) => return Err(Failure::QueueLate),
                _ = way.watch.changed() => {
                    if !self.routes.now().takes(upstream.incarnation) {
                        break None;
                    }
                }
            }
        };
        // Time in the queue is none of the hold.
        way.deadline += begun.elapsed();
        way.note(|notes| notes.queued(begun.elapsed()));
        Ok(place)
    }

    /// Phase 5: sends the request to the node.
    async fn send(
        &self,
        held: Held,
        head: &Parts,
        body: &Kept,
        settings: &Settings,
        way: &mut Way,
    ) -> Result<Sent, Failure> {
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
        let wish = way.is_awaited.then(|| await_wish(&mut request));
        if way.sends > 0 {
            self.metrics.retries.inc();
        }
        way.sends += 1;
        way.note(|notes| notes.sent(&upstream.name));
        let late = answer_late(Arc::clone(&way.progress), settings.response_timeout);
        let answered = tokio::select! {
            answered = upstream.client.request(request) => Ok(answered),
            () = late => Err(()),
        };
        Ok(match answered {
            Err(()) => Sent::Late,
            // A zombie's answers go nowhere, not even one that came in just before the cut.
            Ok(Ok(_)) if upstream.is_cut() => Sent::Lost("the web node is gone".to_owned()),
            Ok(Ok(response)) => {
                wish.iter().for_each(Wish::answered);
                Sent::Answered(Box::new(Answered { response, place, wish }))
            }
            Ok(Err(error)) if error.is_connect() => {
                way.refused.push(upstream.incarnation);
                Sent::Unsent
            }
            Ok(Err(error)) if is_garbled(&error) => Sent::Garbled(error.to_string()),
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
    ) -> Result<Option<Box<Answered>>, Failure> {
        match sent {
            Sent::Answered(answered) => {
                let response = &answered.response;
                let headers = response.headers();
                let is_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                if is_switched && !way.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_granted(headers)) {
                    return Err(Failure::Lost("it switched to another protocol unasked".to_owned()));
                }
                if !headers::names_one_length(headers) {
                    return Err(Failure::Lost("its answer has more than one length".to_owned()));
                }
                let elsewhere = match response.status() {
                    StatusCode::MISDIRECTED_REQUEST => headers::elsewhere(headers),
                    _ => None,
                };
                let Some(host) = elsewhere else { return Ok(Some(answered)) };
                // Its place is another's now.
                drop(answered);
                self.redirect(host, way).await
            }
            Sent::Unsent => Ok(None),
            // It may have been carried out: only what may be done twice is sent again.
            Sent::Lost(why) => match way.progress.spoil() {
                Some(spoil) => Err(spoil.into()),
                None if method.is_idempotent() && body.again().is_some() && way.sends < limits::SENDS_MAX => {
                    Ok(None)
                }
                None => Err(Failure::Lost(why)),
            },
            // It would say the same again.
            Sent::Garbled(why) => Err(Failure::Lost(why)),
            Sent::Late => Err(Failure::NodeLate),
        }
    }

    /// The node says that another one hosts the session. It has done nothing, so any method may be sent on.
    async fn redirect(&self, host: Incarnation, way: &mut Way) -> Result<Option<Box<Answered>>, Failure> {
        self.metrics.elsewhere.inc();
        way.note(Notes::elsewhere);
        if self.routes.now().upstream(host).is_none() {
            // The node goes by an older view, in which that host still lives: it will have the newer one
            // soon.
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

    /// Phase 7: the node's answer for the browser, or the beginning of a tunnel.
    fn answer(
        &self,
        Answered { mut response, place, wish }: Answered,
        admitted: Admitted,
        settings: &Settings,
        upgrade: Option<tunnel::Asked>,
    ) -> Answer {
        let version = response.version();
        *response.version_mut() = Version::HTTP_11;
        match upgrade {
            Some(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let node = hyper::upgrade::on(&mut response);
                let (routes, settings) = (Arc::clone(&self.routes), Arc::clone(&self.settings));
                let tunnel = Tunnel { place, admitted, routes, settings, stop: self.stop.clone() };
                tokio::spawn(tunnel.run(upgrade, node));
                tunnel::for_browser(response.headers_mut(), version);
                response.map(|_| InBody::own(String::new()))
            }
            _ => {
                headers::for_browser(response.headers_mut(), version);
                let silence = settings.idle_timeout;
                response.map(|body| InBody::node(FromNode { body, place, admitted, wish, silence }))
            }
        }
    }
}

/// Waits until a node has had `time` for its answer since the last of the request's body came.
async fn answer_late(progress: Arc<Progress>, time: Duration) {
    let begun = Instant::now();
    loop {
        let end = progress.heard().map_or(begun, |heard| heard.max(begun)) + time;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

/// Whether an answer came that is none.
fn is_garbled(error: &hyper_util::client::legacy::Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_parse)
}

/// Lets the node say whether it wants the body.
fn await_wish(request: &mut Request<OutBody>) -> Wish {
    let (wish, gate) = expect::pair();
    request.body_mut().wait_for(gate);
    request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
    let hears = wish.clone();
    hyper::ext::on_informational(request, move |interim| hears.interim(interim.status()));
    wish
}

/// Phase 2: the session that the request belongs to; the head made fit for a node.
fn identify(head: &mut Parts, client: Client, settings: &Settings) -> Result<Option<Cookie>, Failure> {
    if head.method == Method::CONNECT || head.uri.path_and_query().is_none() {
        return Err(Failure::NotForward);
    }
    if head.version >= Version::HTTP_2
        && let Some(fault) = http2::check(head, &settings.head)
    {
        return Err(Failure::Framing(fault));
    }
    // In HTTP/2 the host is a part of the target, and a header beside it is not needed.
    let is_named = head.version >= Version::HTTP_2 && head.uri.authority().is_some();
    let is_silent = is_named && !head.headers.contains_key(HOST);
    if !is_silent && !headers::names_one_host(&head.headers, head.version) {
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
    let client = client.behind(&head.headers, &settings.trusted);
    headers::for_node(&mut head.headers, head.version, &client);
    head.version = Version::HTTP_11;
    Ok(headers::session(&head.headers, &settings.cookie_name, &settings.keys))
}

/// A chosen node and the request's place there.
struct Held {
    upstream: Arc<Upstream>,
    place: Place,
}

impl Way {
    fn note(&self, what: impl FnOnce(&Notes)) {
        if let Some(notes) = &self.notes {
            what(notes);
        }
    }

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
        let waited = tokio::select! {
            () = stop.cancelled() => Err(Failure::Unrouted("the director stops")),
            // The next table, or the time: the caller looks at both.
            _ = tokio::time::timeout_at(until, self.watch.changed()) => Ok(()),
        };
        self.note(|notes| notes.queued(now.elapsed()));
        waited
    }
}

fn uri_at(upstream: &Upstream, asked: &Uri) -> Result<Uri, Failure> {
    let path = asked.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(upstream.authority())
        .path_and_query(path)
        .build()
        .map_err(|_| Failure::NotForward)
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
