//! Certificates: who we are for other hosts, and how a peer's word about itself is checked.
//!
//! Invariants: TLS 1.3 only, no resumption, no early data, so that no byte of an earlier connection means
//! anything in another one; both sides present a certificate of the cluster's own CA, and a client checks
//! that the one that answers is the very member that it wants. Private keys that other users can read are
//! refused, as ssh does. Callers: [`super::stream`], and the director with tokio.

use super::member::Member;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Origin, Result};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{AlertDescription, ClientConfig, RootCertStore, ServerConfig};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A certificate that ends sooner than this is spoken of in the log.
const RENEW_SOON: Duration = Duration::from_secs(30 * 86_400);
/// Largest file that is read as a certificate or key, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a member needs to show who it is, and to check others. Loaded and checked as a whole.
#[derive(Debug)]
pub struct Identity {
    cluster: String,
    member: Member,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// A member's identity, read again when its files have changed, so that renewed certificates count for the
/// next connection without a restart.
#[derive(Debug)]
pub struct Keyring {
    dir: PathBuf,
    cluster: String,
    member: Member,
    silence: Duration,
    state: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    identity: Arc<Identity>,
    /// The files as they were when they were last tried.
    stamps: Stamps,
}

/// Device, inode, size and time of change of each file; `None` for one that is missing.
type Stamps = [Option<(u64, u64, u64, i64, i64)>; 3];

impl Identity {
    /// Loads the identity of `member` from a folder that `selvage ca` has made.
    ///
    /// # Errors
    /// `Os` if a file cannot be read; `Invalid` if one is not what it must be, is for another member or
    /// cluster, or has expired; `Denied` if others can read the key.
    pub fn load(dir: &Path, cluster: &str, member: &Member) -> Result<Self> {
        let [ca_path, certificate_path, key_path] = paths(dir, member);
        let ca = certificates(&ca_path)?;
        let chain = certificates(&certificate_path)?;
        let key = private_key(&key_path)?;
        check(&chain, &ca, cluster, member, &certificate_path, &ca_path)?;
        let mut roots = RootCertStore::empty();
        for certificate in ca {
            roots.add(certificate).map_err(|error| invalid(&ca_path, "is no certificate of a CA", error))?;
        }
        let roots = Arc::new(roots);
        let (client, server) = configs(&roots, chain, key).map_err(|error| {
            invalid(&key_path, &format!("does not go with {}", certificate_path.display()), error)
        })?;
        Ok(Self { cluster: cluster.to_owned(), member: member.clone(), client, server })
    }

    /// Whose it is.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
}

impl Keyring {
    /// For a member of the configured cluster.
    ///
    /// # Errors
    /// `Invalid` without `[tls]`; as [`Identity::load`].
    pub fn new(config: &Config, member: Member) -> Result<Self> {
        let Some(tls) = &config.tls else {
            let what = format!("{} has no [tls], which other hosts ask for", config.path.display());
            return Err(Error::new(ErrorKind::Invalid, Origin::Config, what));
        };
        let cluster = &config.cluster.name;
        // Before the files are read: a change in between is seen by the next look.
        let stamps = stamps(&tls.dir, &member);
        let identity = Arc::new(Identity::load(&tls.dir, cluster, &member)?);
        let state = Mutex::new(Loaded { identity, stamps });
        let silence = config.timing.silence();
        Ok(Self { dir: tls.dir.clone(), cluster: cluster.clone(), member, silence, state })
    }

    /// The identity as its files say now; the one before while they make no sense (which is logged once).
    pub fn identity(&self) -> Arc<Identity> {
        let stamps = stamps(&self.dir, &self.member);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stamps != stamps {
            state.stamps = stamps;
            match Identity::load(&self.dir, &self.cluster, &self.member) {
                Ok(identity) => {
                    tracing::info!("read the certificate of {} again", self.member);
                    state.identity = Arc::new(identity);
                }
                Err(error) => tracing::warn!("the certificate stays as it was: {error}"),
            }
        }
        Arc::clone(&state.identity)
    }

    /// Silence after which a peer is declared down; bounds how long a half-open connection lives.
    pub fn silence(&self) -> Duration {
        self.silence
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
}

/// For accepting: a client certificate of the cluster's CA is demanded.
pub fn server_config(identity: &Identity) -> Arc<ServerConfig> {
    Arc::clone(&identity.server)
}

/// For connecting to `member`: the configuration, and the name that its certificate must have.
///
/// # Errors
/// `Invalid` for a name that no certificate can have.
pub fn client_config(
    identity: &Identity,
    member: &Member,
) -> Result<(Arc<ClientConfig>, ServerName<'static>)> {
    Ok((Arc::clone(&identity.client), member.server_name(&identity.cluster)?))
}

/// The member that a verified chain is for. Ask only after the handshake.
///
/// # Errors
/// `Denied` if there is no chain, or it is for no member of this cluster.
pub fn member_of(chain: Option<&[CertificateDer<'_>]>, cluster: &str) -> Result<Member> {
    let denied = |what: String| Error::new(ErrorKind::Denied, Origin::Control, what);
    let end = chain.and_then(<[_]>::first).ok_or_else(|| denied("the peer has no certificate".to_owned()))?;
    let names = dns_names(end)?;
    match names.as_slice() {
        [name] => Member::of_dns_name(name, cluster),
        _ => None,
    }
    .ok_or_else(|| {
        denied(format!("a certificate for {:?} is for no member of cluster {cluster:?}", names.join(", ")))
    })
}

/// The error for a failure of TLS: `Denied` if it is about certificates, `Corrupt` otherwise.
pub fn failed(error: rustls::Error) -> Error {
    use AlertDescription as Alert;
    let about_certificates = match &error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            Some("the peer's certificate is not accepted")
        }
        rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            // A signature by a key that the peer knows not, as of another cluster's CA of the same name.
            | Alert::DecryptError
            | Alert::AccessDenied,
        ) => Some("the peer does not accept our certificate"),
        _ => None,
    };
    let (kind, what) = match about_certificates {
        Some(what) => (ErrorKind::Denied, what),
        None => (ErrorKind::Corrupt, "the peer does not speak TLS as it must"),
    };
    Error::new(kind, Origin::Control, what).with_source(error)
}

/// As [`failed`], for an error that may have come through a socket: `Unreachable` if it is the socket's.
pub fn io_failed(error: std::io::Error) -> Error {
    match error.downcast::<rustls::Error>() {
        Ok(error) => failed(error),
        Err(error) => {
            Error::new(ErrorKind::Unreachable, Origin::Control, "the connection is gone").with_source(error)
        }
    }
}

fn configs(
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), rustls::Error> {
    let provider = provider();
    let versions = [&rustls::version::TLS13];
    let bad = |error: rustls::server::VerifierBuilderError| rustls::Error::General(error.to_string());
    let client_verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider))
            .build()
            .map_err(bad)?;
    let server_verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider))
            .build()
            .map_err(bad)?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)?
        .with_client_cert_verifier(client_verifier)
        .with_single_cert(chain.clone(), key.clone_key())?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.max_early_data_size = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)?
        .with_webpki_verifier(server_verifier)
        .with_client_auth_cert(chain, key)?;
    client.resumption = Resumption::disabled();
    client.enable_early_data = false;
    // Nobody chooses by it, and it would tell the member's name to who listens.
    client.enable_sni = false;
    Ok((Arc::new(client), Arc::new(server)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Checks our own certificate as a peer would, so that what is wrong is said here and not there.
fn check(
    chain: &[CertificateDer<'static>],
    ca: &[CertificateDer<'static>],
    cluster: &str,
    member: &Member,
    path: &Path,
    ca_path: &Path,
) -> Result<()> {
    let wrong = |what: String| Error::new(ErrorKind::Invalid, Origin::Control, what);
    let Some((end, intermediates)) = chain.split_first() else {
        return Err(wrong(format!("{} holds no certificate", path.display())));
    };
    let (names, wanted) = (dns_names(end)?, member.dns_name(cluster));
    if names != [wanted.as_str()] {
        let names = names.join(", ");
        let what =
            format!("{} is the certificate of {names:?}; it must be that of {wanted:?}", path.display());
        return Err(wrong(what));
    }
    let end = webpki::EndEntityCert::try_from(end)
        .map_err(|error| invalid(path, "holds no certificate that can be read", error))?;
    let anchors: Vec<_> = ca
        .iter()
        .map(|ca| webpki::anchor_from_trusted_cert(ca).map(|anchor| anchor.to_owned()))
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(ca_path, "holds no certificate that can be read", error))?;
    let algorithms = provider().signature_verification_algorithms;
    let usages = [
        (member.connects(), webpki::KeyUsage::client_auth()),
        (member.listens(), webpki::KeyUsage::server_auth()),
    ];
    let verify = |time: UnixTime| {
        usages.iter().filter(|(needed, _)| *needed).try_for_each(|(_, usage)| {
            end.verify_for_usage(algorithms.all, &anchors, intermediates, time, *usage, None, None)
                .map(|_| ())
        })
    };
    let now = UnixTime::now();
    verify(now).map_err(|error| match error {
        webpki::Error::CertExpired { not_after, .. } => wrong(format!(
            "{} has expired on {}: renew it with `selvage ca --renew`",
            path.display(),
            date(not_after)
        )),
        webpki::Error::CertNotValidYet { not_before, .. } => wrong(format!(
            "{} is not valid before {}; is this host's clock right ({})?",
            path.display(),
            date(not_before),
            date(now)
        )),
        error => invalid(path, &format!("is not good by {}", ca_path.display()), error),
    })?;
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + RENEW_SOON);
    if let Err(webpki::Error::CertExpired { not_after, .. }) = verify(soon) {
        tracing::warn!(
            "{} expires on {}: renew it with `selvage ca --renew`",
            path.display(),
            date(not_after)
        );
    }
    Ok(())
}

fn dns_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| {
        Error::new(ErrorKind::Denied, Origin::Control, "a certificate cannot be read").with_source(error)
    })?;
    Ok(parsed.valid_dns_names().map(str::to_owned).collect())
}

/// CA, certificate and key of a member.
fn paths(dir: &Path, member: &Member) -> [PathBuf; 3] {
    let stem = member.file_stem();
    [dir.join("ca.pem"), dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key"))]
}

fn stamps(dir: &Path, member: &Member) -> Stamps {
    paths(dir, member).map(|path| {
        let metadata = path.metadata().ok()?;
        Some((metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
    })
}

/// The certificates of a PEM file; at least one.
///
/// # Errors
/// `Os` if it cannot be read, `Invalid` if it is no such file.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(path, "is no PEM file of certificates", error))?;
    match certificates.is_empty() {
        false => Ok(certificates),
        true => {
            let what = format!("{} holds no certificate", path.display());
            Err(Error::new(ErrorKind::Invalid, Origin::Control, what))
        }
    }
}

/// The key of a PEM file.
///
/// # Errors
/// `Os` if it cannot be read, `Invalid` if it is no such file, `Denied` if others can use it.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read(path)?;
    let mode = path.metadata().map_err(|error| unreadable(path, error))?.mode();
    // Others may do nothing with it; a group may read it, which is how many hosts share keys with a service.
    if mode & 0o027 != 0 {
        let what = format!(
            "{} has mode {:04o}, so that other users can use this key: make it 0600 with chmod",
            path.display(),
            mode & 0o7777
        );
        return Err(Error::new(ErrorKind::Denied, Origin::Control, what));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| invalid(path, "is no PEM file of a key", error))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = path.metadata().map_err(|error| unreadable(path, error))?.len();
    if bytes > FILE_BYTES_MAX {
        let what = format!("{} has {bytes} bytes, too many for a certificate or key", path.display());
        return Err(Error::new(ErrorKind::Invalid, Origin::Control, what));
    }
    std::fs::read(path).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let what = match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!(
                "{} is missing: for `[tls]`, `selvage ca` makes it, and it must be copied to this host",
                path.display()
            )
        }
        _ => format!("user {} cannot read {}", rustix::process::geteuid().as_raw(), path.display()),
    };
    Error::os(Origin::Control, what, error)
}

fn invalid(path: &Path, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Invalid, Origin::Control, format!("{} {what}", path.display())).with_source(error)
}

/// A time as people write it, in UTC (the civil calendar from days since 1970, in whole numbers).
fn date(time: UnixTime) -> String {
    let (days, seconds) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
    // Eras of 400 years that begin on the 1st of March, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) =
        (year + era * 400 + u64::from(month >= 10), if month < 10 { month + 3 } else { month - 9 });
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
