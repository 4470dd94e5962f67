//! Makes a cluster's certificates: a CA of its own, and one certificate for each member of the configuration.
//!
//! Invariants: no file that exists is overwritten unless the caller asks for it; a private key never has a
//! mode that lets others read it, not even while it is written; a member's certificate is good for what the
//! member does (opening connections, taking them) and for its one name, and the CA only for names of its
//! cluster. Callers: `selvage ca`, tests.

use super::member::Member;
use super::tls::Identity;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Origin, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Days that a member's certificate is good for, if nothing else is said.
pub const DAYS_DEFAULT: u32 = 825;
/// Most days that can be asked for.
pub const DAYS_MAX: i64 = 36_500;
/// Days that a CA is good for.
const CA_DAYS: u32 = 36_500;
/// Certificates count from this long before they are made: other hosts' clocks may be behind.
const BACKDATED: Duration = Duration::from_secs(86_400);

/// From when until when a certificate is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// The first instant.
    pub from: SystemTime,
    /// The last one.
    pub until: SystemTime,
}

impl Validity {
    /// From now, with an allowance for clocks that are behind, for so many days.
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { from: now - BACKDATED, until: now + Duration::from_secs(u64::from(days) * 86_400) }
    }
}

/// A certificate and its private key, both as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// A cluster's certificate authority.
pub struct Authority {
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one.
    ///
    /// # Errors
    /// `Invalid` for a cluster name that DNS does not allow, `Os` without random numbers.
    pub fn create(cluster: &str) -> Result<(Self, Issued)> {
        let key = KeyPair::generate().map_err(failed("cannot make a key"))?;
        let params = authority_params(cluster);
        let certificate = params.self_signed(&key).map_err(failed("cannot make the CA's certificate"))?;
        let issued = Issued { certificate: certificate.pem(), key: key.serialize_pem() };
        Ok((Self { cluster: cluster.to_owned(), issuer: Issuer::new(params, key) }, issued))
    }

    /// Goes on with one that was made earlier.
    ///
    /// # Errors
    /// `Invalid` if the key is none, or not that of the certificate.
    pub fn open(cluster: &str, issued: &Issued) -> Result<Self> {
        let key = KeyPair::from_pem(&issued.key).map_err(failed("the CA's key cannot be read"))?;
        let ours = Self { cluster: cluster.to_owned(), issuer: Issuer::new(authority_params(cluster), key) };
        // Whether key, name and cluster are those of the certificate, a certificate shows.
        let probe = ours.issue(&Member::Operator, Validity::days(1))?;
        verify(&probe.certificate, &issued.certificate).map_err(|error| {
            invalid("the CA is not that of this cluster, or its key is another one's").with_source(error)
        })?;
        Ok(ours)
    }

    /// A certificate and a new key for a member.
    ///
    /// # Errors
    /// `Invalid` for a name that DNS does not allow.
    pub fn issue(&self, member: &Member, validity: Validity) -> Result<Issued> {
        member.server_name(&self.cluster)?;
        let name = member.dns_name(&self.cluster);
        let key = KeyPair::generate().map_err(failed("cannot make a key"))?;
        let mut params =
            CertificateParams::new(vec![name.clone()]).map_err(failed("a member's name is not allowed"))?;
        params.distinguished_name = named(&name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if member.connects() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if member.listens() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity);
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(failed("cannot make a member's certificate"))?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Everybody who needs a certificate in a configured cluster.
pub fn members(config: &Config) -> Vec<Member> {
    let servers = config.servers.iter().map(|server| Member::Server(server.name.clone()));
    let nodes = config.nodes.iter().map(|node| Member::Node(node.name.clone()));
    [Member::Director, Member::Operator].into_iter().chain(servers).chain(nodes).collect()
}

/// What [`make`] did.
#[derive(Debug, Default)]
pub struct Made {
    /// The CA is new.
    pub ca: bool,
    /// Members with a new certificate.
    pub issued: Vec<Member>,
    /// Members whose certificate was there and is left as it was.
    pub kept: Vec<Member>,
}

/// Makes what is missing in `dir`: the folder, the CA, certificates and keys of the members; with `renew`,
/// new ones for all members, by the same CA. Each identity is loaded and checked at the end.
///
/// # Errors
/// `Invalid` if what is there does not fit; `Os`.
pub fn make(dir: &Path, config: &Config, days: u32, renew: bool) -> Result<Made> {
    let cluster = &config.cluster.name;
    let members = members(config);
    for member in &members {
        member.server_name(cluster)?;
    }
    match DirBuilder::new().mode(0o700).recursive(true).create(dir) {
        Ok(()) => {}
        Err(error) => return Err(cannot("make the folder", dir, error)),
    }
    let mut made = Made::default();
    let authority = authority(dir, cluster, &mut made)?;
    let validity = Validity::days(days);
    for member in members {
        let (certificate, key) = files(dir, &member);
        let is_there = certificate.exists() && key.exists();
        if is_there && !renew {
            made.kept.push(member);
            continue;
        }
        let issued = authority.issue(&member, validity)?;
        let owner = key_owner(config, &member);
        // The key first: a certificate without its key would look whole.
        replace(&key, &issued.key, 0o600, owner)?;
        replace(&certificate, &issued.certificate, 0o644, None)?;
        if owner.is_some() {
            // Another user must get to its own key; nobody else can list or read anything but certificates.
            std::fs::set_permissions(dir, Permissions::from_mode(0o711))
                .map_err(|error| cannot("open the folder", dir, error))?;
        }
        made.issued.push(member);
    }
    for member in made.issued.iter().chain(&made.kept) {
        Identity::load(dir, cluster, member)?;
    }
    Ok(made)
}

/// A member's certificate and key in a folder.
pub fn files(dir: &Path, member: &Member) -> (PathBuf, PathBuf) {
    let stem = member.file_stem();
    (dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")))
}

/// Whose a member's key is, if it is not the maker's: root gives each node its own.
fn key_owner(config: &Config, member: &Member) -> Option<u32> {
    let Member::Node(name) = member else { return None };
    let uid = config.node(name)?.uids.first().copied()?;
    (rustix::process::geteuid().is_root() && uid != 0).then_some(uid)
}

fn authority(dir: &Path, cluster: &str, made: &mut Made) -> Result<Authority> {
    let (certificate_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    match (certificate_path.exists(), key_path.exists()) {
        (false, false) => {
            let (authority, issued) = Authority::create(cluster)?;
            replace(&key_path, &issued.key, 0o600, None)?;
            replace(&certificate_path, &issued.certificate, 0o644, None)?;
            made.ca = true;
            Ok(authority)
        }
        (true, true) => {
            let read =
                |path: &Path| std::fs::read_to_string(path).map_err(|error| cannot("read", path, error));
            let issued = Issued { certificate: read(&certificate_path)?, key: read(&key_path)? };
            Authority::open(cluster, &issued)
                .map_err(|error| invalid(&format!("{}: {error}", certificate_path.display())))
        }
        (there, _) => {
            let (here, missing) =
                if there { (&certificate_path, &key_path) } else { (&key_path, &certificate_path) };
            Err(invalid(&format!(
                "{} is there and {} is not: put it back, or begin anew in another folder (then every host \
                 needs its new files at once)",
                here.display(),
                missing.display()
            )))
        }
    }
}

/// Whether one certificate was made by the CA of the other.
fn verify(certificate: &str, ca: &str) -> Result<()> {
    let bad = |error: webpki::Error| invalid("a certificate is not good").with_source(error);
    let parse = |text: &str| {
        CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|error| invalid("a certificate cannot be read").with_source(error))
    };
    let (certificate, ca) = (parse(certificate)?, parse(ca)?);
    let anchors = [webpki::anchor_from_trusted_cert(&ca).map_err(bad)?];
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let usage = webpki::KeyUsage::client_auth();
    webpki::EndEntityCert::try_from(&certificate)
        .and_then(|end| {
            end.verify_for_usage(algorithms.all, &anchors, &[], UnixTime::now(), usage, None, None)
                .map(|_| ())
        })
        .map_err(bad)
}

/// Writes a file whole or not at all, with its mode from the start and its owner at the end.
fn replace(path: &Path, text: &str, mode: u32, owner: Option<u32>) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != IoErrorKind::NotFound => return Err(cannot("replace", &fresh, error)),
        _ => {}
    }
    let written =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh).and_then(|mut file| {
            // The umask may have taken away what a certificate's readers need.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            fchown(&file, owner, None)?;
            file.sync_all()
        });
    written.and_then(|()| std::fs::rename(&fresh, path)).map_err(|error| cannot("write", path, error))
}

/// A CA's parameters; made again from the cluster's name whenever it signs, so they must not change.
fn authority_params(cluster: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Selvage CA of cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(format!("{cluster}.selvage"))],
        excluded_subtrees: Vec::new(),
    });
    set_validity(&mut params, Validity::days(CA_DAYS));
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = date_time_ymd(1970, 1, 1);
    // Whole seconds, as certificates have them.
    let since =
        |time: SystemTime| Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    params.not_before = epoch + since(validity.from);
    params.not_after = epoch + since(validity.until);
}

fn failed(what: &'static str) -> impl Fn(rcgen::Error) -> Error {
    move |error| invalid(what).with_source(error)
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, Origin::Control, what)
}

fn cannot(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::os(Origin::Control, format!("cannot {what} {}", path.display()), error)
}
