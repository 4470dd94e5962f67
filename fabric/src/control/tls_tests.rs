use super::*;
use crate::control::ca::{self, Authority, Validity};
use crate::control::testing::{Certificates, config, node, server};
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn every_member_has_an_identity() {
    let certificates = Certificates::of("demo");
    let members = [Member::Director, Member::Operator, server("s1"), server("s2"), node("n1"), node("n2")];
    for member in members {
        let keys = certificates.keys(member.clone());
        assert_eq!((keys.identity().member(), keys.cluster()), (&member, "demo"));
    }
    let key = certificates.files(&server("s1")).1;
    assert_eq!(key.metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(certificates.dir().join("ca.key").metadata().unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn missing_files_and_settings_are_named() {
    let certificates = Certificates::of("demo");
    let error = certificates.error(node("n7"));
    assert_eq!(error.kind, ErrorKind::Os);
    let text = error.to_string();
    assert!(text.contains("node-n7.pem is missing") && text.contains("selvage ca"), "{text}");
    std::fs::remove_file(certificates.files(&node("n1")).1).unwrap();
    assert!(certificates.error(node("n1")).to_string().contains("node-n1.key is missing"));
    std::fs::remove_file(certificates.dir().join("ca.pem")).unwrap();
    assert!(certificates.error(node("n2")).to_string().contains("ca.pem is missing"));

    let mut without = certificates.config.clone();
    without.tls = None;
    let error = Keyring::new(&without, Member::Director).unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.context.contains("no [tls]"), "{error}");
}

#[test]
fn a_key_that_others_can_use_is_refused() {
    let certificates = Certificates::of("demo");
    let key = certificates.files(&node("n1")).1;
    for mode in [0o604, 0o602, 0o620, 0o666, 0o777] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = certificates.error(node("n1"));
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(
            error.context.contains(&format!("mode {mode:04o}")) && error.context.contains("0600"),
            "{error}"
        );
    }
    for mode in [0o600, 0o400, 0o640] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        certificates.keys(node("n1"));
    }
}

#[test]
fn files_that_do_not_fit_are_named() {
    let certificates = Certificates::of("demo");
    let authority = certificates.authority();
    let member = node("n1");
    let valid = Validity::days(30);
    let says = |words: &[&str]| {
        let error = certificates.error(member.clone());
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    };
    // Another member's, another cluster's by name, another cluster's by CA.
    certificates.put(&member, &authority, &node("n2"), valid);
    says(&["node-n1.pem", "\"n2.node.demo.selvage\"", "must be that of \"n1.node.demo.selvage\""]);
    let (other, _) = Authority::create("other").unwrap();
    certificates.put(&member, &other, &member, valid);
    says(&["n1.node.other.selvage", "n1.node.demo.selvage"]);
    let (alike, _) = Authority::create("demo").unwrap();
    certificates.put(&member, &alike, &member, valid);
    says(&["node-n1.pem is not good by", "ca.pem"]);
    // Over, and not begun.
    let ago = |days: u32| SystemTime::now() - days * DAY;
    certificates.put(&member, &authority, &member, Validity { from: ago(9), until: ago(2) });
    says(&["has expired on 20", "UTC", "selvage ca --renew"]);
    let from = SystemTime::now() + 2 * DAY;
    certificates.put(&member, &authority, &member, Validity { from, until: from + DAY });
    says(&["is not valid before 20", "clock"]);
    // A key of another certificate, and things that are neither.
    certificates.put(&member, &authority, &member, valid);
    certificates.keys(member.clone());
    let (certificate, key) = certificates.files(&member);
    std::fs::copy(certificates.files(&node("n2")).1, &key).unwrap();
    says(&["node-n1.key does not go with", "node-n1.pem"]);
    std::fs::write(&key, "nothing").unwrap();
    says(&["node-n1.key is no PEM file of a key"]);
    certificates.put(&member, &authority, &member, valid);
    std::fs::write(&certificate, "nothing").unwrap();
    says(&["node-n1.pem holds no certificate"]);
    std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(certificates.error(member.clone()).to_string().contains("cannot be read"));
    std::fs::write(&certificate, vec![b'x'; 2 << 20]).unwrap();
    says(&["2097152 bytes"]);
}

/// A CA may only name members of its own cluster, whatever it is made to sign.
#[test]
fn a_ca_is_good_for_its_cluster_only() {
    let certificates = Certificates::of("demo");
    let (_, issued) = Authority::create("other").unwrap();
    // The key of the other cluster's CA, as if it were to sign for ours.
    let key = rcgen::KeyPair::from_pem(&issued.key).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["n1.node.demo.selvage".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let mut issuer = rcgen::CertificateParams::default();
    issuer.distinguished_name.push(rcgen::DnType::CommonName, "Selvage CA of cluster other");
    let member_key = rcgen::KeyPair::generate().unwrap();
    let signed = params.signed_by(&member_key, &rcgen::Issuer::new(issuer, key)).unwrap();
    let (certificate, key) = certificates.files(&node("n1"));
    std::fs::write(certificate, signed.pem()).unwrap();
    std::fs::write(key, member_key.serialize_pem()).unwrap();
    std::fs::write(certificates.dir().join("ca.pem"), issued.certificate).unwrap();
    let text = certificates.error(node("n1")).to_string();
    assert!(text.contains("NameConstraintViolation"), "{text}");
}

#[test]
fn renewed_files_count_and_broken_ones_do_not() {
    let certificates = Certificates::of("demo");
    let keys = certificates.keys(server("s1"));
    let first = keys.identity();
    assert!(Arc::ptr_eq(&first, &keys.identity()), "nothing has changed");
    certificates.put(&server("s1"), &certificates.authority(), &server("s1"), Validity::days(60));
    let second = keys.identity();
    assert!(!Arc::ptr_eq(&first, &second));
    let (certificate, _) = certificates.files(&server("s1"));
    let whole = std::fs::read(&certificate).unwrap();
    std::fs::write(&certificate, &whole[..100]).unwrap();
    assert!(Arc::ptr_eq(&second, &keys.identity()), "half a file");
    std::fs::write(&certificate, &whole).unwrap();
    assert!(!Arc::ptr_eq(&second, &keys.identity()), "whole again");
}

#[test]
fn making_certificates_again_changes_nothing() {
    let certificates = Certificates::of("demo");
    let read = || {
        let mut files: Vec<_> = std::fs::read_dir(certificates.dir())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = read();
    let made = ca::make(certificates.dir(), &certificates.config, 30, false).unwrap();
    assert!(!made.ca && made.issued.is_empty() && made.kept.len() == 6, "{made:?}");
    assert!(read() == before);
    // A member that is new gets its own; with `renew` all get new ones, by the same CA.
    let mut more = certificates.config.clone();
    more.nodes.push(crate::config::Node { name: "n3".into(), ..more.nodes[0].clone() });
    let made = ca::make(certificates.dir(), &more, 30, false).unwrap();
    assert_eq!((made.issued, made.kept.len()), (vec![node("n3")], 6));
    let made = ca::make(certificates.dir(), &more, 30, true).unwrap();
    assert!(!made.ca && made.issued.len() == 7 && made.kept.is_empty(), "{made:?}");
    let after = read();
    let same = before.iter().filter(|file| after.contains(file)).count();
    assert_eq!(same, 2, "ca.pem and ca.key");
    // What is there must fit.
    let other = config("other", certificates.dir());
    let error = ca::make(certificates.dir(), &other, 30, false).unwrap_err();
    assert!(error.to_string().contains("not that of this cluster"), "{error}");
    assert!(read() == after, "nothing was written");
    std::fs::remove_file(certificates.dir().join("ca.key")).unwrap();
    let error = ca::make(certificates.dir(), &more, 30, false).unwrap_err();
    assert!(error.to_string().contains("ca.key is not: put it back"), "{error}");
}

/// As root, each node's key is its own user's, who can get at it and at no other key.
#[test]
fn a_nodes_key_is_its_users() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("tls");
    let mut config = config("demo", &dir);
    config.nodes[0].uids = vec![12345];
    ca::make(&dir, &config, 30, false).unwrap();
    let of = |name: &str| dir.join(name).metadata().unwrap();
    let us = rustix::process::geteuid();
    let (owner, mode) = if us.is_root() { (12345, 0o711) } else { (us.as_raw(), 0o700) };
    assert_eq!((of("node-n1.key").uid(), of("node-n1.key").mode() & 0o7777), (owner, 0o600));
    assert_eq!(of("node-n2.key").uid(), us.as_raw());
    assert_eq!(of("").mode() & 0o7777, mode);
}

#[test]
fn dates_are_those_of_the_calendar() {
    let text = |seconds| date(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
    for (seconds, expected) in [
        (0, "1970-01-01 00:00 UTC"),
        (951_782_400, "2000-02-29 00:00 UTC"),
        (951_868_799, "2000-02-29 23:59 UTC"),
        (951_868_800, "2000-03-01 00:00 UTC"),
        (1_709_164_800, "2024-02-29 00:00 UTC"),
        (1_735_689_599, "2024-12-31 23:59 UTC"),
        (4_107_542_400, "2100-03-01 00:00 UTC"),
    ] {
        assert_eq!(text(seconds), expected);
    }
}
