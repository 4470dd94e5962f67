//! TLS for browsers: certificates by the name that a browser asks for, and which protocol follows.
//!
//! TLS 1.3 only, by ring. Certificates can be replaced while browsers come in: each handshake goes by one set
//! from its beginning to its end. Handshakes are bounded in time, and in number by that of connections: their
//! work is done in one go when the browser's hello is there, by as many at once as there are threads, so a
//! queue for it would only let silent browsers keep the others out. Caller: [`crate::proxy::listen`].

use crate::limits;
use arc_swap::ArcSwap;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ProtocolVersion, ServerConfig};
use selvage_fabric::config::{Certificate, FrontTls};
use selvage_fabric::control::tls::{certificates, private_key};
use selvage_fabric::error::{Error, ErrorKind, Origin, Result};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, rustls};

/// Name of HTTP/2 in the handshake.
const H2: &[u8] = b"h2";

/// A set of certificates, loaded and checked as a whole.
#[derive(Clone, Debug)]
pub struct Certificates(Arc<ServerConfig>);

/// The present certificates.
#[derive(Debug)]
pub struct Keys(ArcSwap<ServerConfig>);

/// A browser after its handshake.
#[derive(Debug)]
pub struct Shaken {
    /// Its connection.
    pub stream: TlsStream<TcpStream>,
    /// The version, as people write it.
    pub version: &'static str,
    /// Whether HTTP/2 follows.
    pub is_http2: bool,
}

/// Chooses a certificate by the name that a browser asks for.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl Certificates {
    /// Loads what the configuration names.
    ///
    /// # Errors
    /// `Os` if a file cannot be read; `Invalid` if one is not what it must be, or a key is another
    /// certificate's; `Denied` if others can use a key.
    pub fn load(tls: &FrontTls) -> Result<Self> {
        let keys = tls.certificates.iter().map(certified).collect::<Result<Vec<_>>>()?;
        let failed = |error: rustls::Error| {
            Error::new(ErrorKind::Invalid, Origin::Director, "TLS cannot be set up").with_source(error)
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByName(keys)));
        config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        // What was sent before the handshake ends can be sent again by anybody.
        config.max_early_data_size = 0;
        config.ticketer = ring::Ticketer::new().map_err(failed)?;
        Ok(Self(Arc::new(config)))
    }
}

impl Keys {
    /// Begins with these.
    pub fn new(certificates: Certificates) -> Self {
        Self(ArcSwap::new(certificates.0))
    }

    /// From now on handshakes go by these.
    pub fn replace(&self, certificates: Certificates) {
        self.0.store(certificates.0);
    }

    /// The handshake with a browser.
    ///
    /// # Errors
    /// If it fails or is not over in time.
    pub async fn shake(&self, stream: TcpStream) -> io::Result<Shaken> {
        let shaking = TlsAcceptor::from(self.0.load_full()).accept(stream);
        let stream = tokio::time::timeout(limits::HANDSHAKE_WAIT, shaking).await??;
        let connection = stream.get_ref().1;
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLS",
        };
        let is_http2 = connection.alpn_protocol() == Some(H2);
        Ok(Shaken { stream, version, is_http2 })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| self.0.iter().find(|key| is_for(key, &name)));
        named.or(self.0.first()).cloned()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let certificate = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    certificate.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}

fn certified(files: &Certificate) -> Result<Arc<CertifiedKey>> {
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
        let what = format!("{} does not go with {}", files.key.display(), files.certificate.display());
        Error::new(ErrorKind::Invalid, Origin::Director, what).with_source(error)
    })?;
    Ok(Arc::new(certified))
}
