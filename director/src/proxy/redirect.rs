//! Sends browsers that came without TLS to the same page with it.

use crate::proxy::body::InBody;
use crate::proxy::client::Client;
use crate::proxy::phases::Answer;
use crate::proxy::settings::Settings;
use hyper::header::{HOST, HeaderValue, LOCATION};
use hyper::http::uri::Authority;
use hyper::{Request, Response, StatusCode};

/// The same page with TLS, for a browser that came without, if that is wanted. The method stays.
pub fn redirect<B>(request: &Request<B>, client: Client, settings: &Settings) -> Option<Answer> {
    let port = settings.redirect?;
    if client.behind(request.headers(), &settings.trusted).secure {
        return None;
    }
    let host = request.uri().authority().map(|authority| authority.host().to_owned());
    let host = host.or_else(|| {
        let named = request.headers().get(HOST)?.to_str().ok()?;
        Some(named.parse::<Authority>().ok()?.host().to_owned())
    })?;
    let path = request.uri().path_and_query()?;
    let at = if port == 443 { host } else { format!("{host}:{port}") };
    let location = HeaderValue::from_str(&format!("https://{at}{path}")).ok()?;
    let mut answer = Response::new(InBody::own(String::new()));
    *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
    answer.headers_mut().insert(LOCATION, location);
    Some(answer)
}
