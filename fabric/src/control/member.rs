//! Who takes part in a cluster over TCP, and the DNS names by which certificates say so. Pure.
//!
//! A certificate carries exactly one DNS name. Servers' and nodes' names have one label more than those of
//! the director and the operator, so that no configured name can make one look like the other.

use super::message::{Refusal, Role};
use crate::error::{Error, ErrorKind, Origin, Result};
use rustls::pki_types::ServerName;
use std::fmt;

/// Last part of every member's DNS name. It is in no public zone: these names are never looked up.
const ZONE: &str = "selvage";

/// A member of the cluster, as its certificate names it.
#[derive(Clone, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Member {
    /// The director.
    Director,
    /// Whoever may use the tools.
    Operator,
    /// The session server of this name.
    Server(String),
    /// All processes of the node of this name.
    Node(String),
}

impl Member {
    /// Its DNS name: `director.<cluster>.selvage`, `<name>.server.<cluster>.selvage`, and so on.
    pub fn dns_name(&self, cluster: &str) -> String {
        match self {
            Self::Director => format!("director.{cluster}.{ZONE}"),
            Self::Operator => format!("operator.{cluster}.{ZONE}"),
            Self::Server(name) => format!("{name}.server.{cluster}.{ZONE}"),
            Self::Node(name) => format!("{name}.node.{cluster}.{ZONE}"),
        }
    }

    /// The member of `cluster` that a DNS name stands for.
    pub fn of_dns_name(dns_name: &str, cluster: &str) -> Option<Self> {
        let inside =
            dns_name.strip_suffix(ZONE)?.strip_suffix('.')?.strip_suffix(cluster)?.strip_suffix('.')?;
        match (inside.split_once('.'), inside) {
            (None, "director") => Some(Self::Director),
            (None, "operator") => Some(Self::Operator),
            (Some((name, "server")), _) if is_name(name) => Some(Self::Server(name.to_owned())),
            (Some((name, "node")), _) if is_name(name) => Some(Self::Node(name.to_owned())),
            _ => None,
        }
    }

    /// The name that a TLS client asks for.
    ///
    /// # Errors
    /// `Invalid` for a name that DNS does not allow; the configuration's check refuses it before.
    pub fn server_name(&self, cluster: &str) -> Result<ServerName<'static>> {
        let dns_name = self.dns_name(cluster);
        ServerName::try_from(dns_name.clone()).map_err(|error| {
            let what = format!("{dns_name:?} cannot be the name of a certificate");
            Error::new(ErrorKind::Invalid, Origin::Control, what).with_source(error)
        })
    }

    /// Start of the names of its certificate's and key's files.
    pub fn file_stem(&self) -> String {
        match self {
            Self::Director => "director".to_owned(),
            Self::Operator => "operator".to_owned(),
            Self::Server(name) => format!("server-{name}"),
            Self::Node(name) => format!("node-{name}"),
        }
    }

    /// Whether it opens connections. (Servers only answer.)
    pub fn connects(&self) -> bool {
        !matches!(self, Self::Server(_))
    }

    /// Whether others connect to it.
    pub fn listens(&self) -> bool {
        matches!(self, Self::Director | Self::Server(_))
    }

    /// Whether it may come in this role: as what its certificate says, and as nothing else.
    ///
    /// # Errors
    /// `Denied`, for the peer to be told.
    pub fn may_be(&self, role: &Role) -> std::result::Result<(), Refusal> {
        let agrees = match (self, role) {
            (Self::Director, Role::Director) | (Self::Operator, Role::Operator) => true,
            (Self::Node(ours), Role::Node { name, .. } | Role::Application { name, .. }) => ours == name,
            _ => false,
        };
        match agrees {
            true => Ok(()),
            false => Err(Refusal::Denied(format!("the certificate is that of {self}"))),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Director => f.write_str("the director"),
            Self::Operator => f.write_str("an operator"),
            Self::Server(name) => write!(f, "server {name}"),
            Self::Node(name) => write!(f, "node {name}"),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::Incarnation;

    fn members() -> [Member; 6] {
        let server = |name: &str| Member::Server(name.to_owned());
        let node = |name: &str| Member::Node(name.to_owned());
        [Member::Director, Member::Operator, server("s1"), server("director"), node("s1"), node("node")]
    }

    #[test]
    fn names_stand_for_one_member_each() {
        for member in members() {
            let name = member.dns_name("demo");
            assert_eq!(Member::of_dns_name(&name, "demo"), Some(member.clone()));
            assert_eq!(Member::of_dns_name(&name, "other"), None);
            assert!(member.server_name("demo").is_ok());
            let alike = members().iter().filter(|other| other.dns_name("demo") == name).count();
            assert_eq!(alike, 1, "{name}");
        }
    }

    #[test]
    fn other_names_stand_for_nobody() {
        for name in [
            "director.demo.selvage.example",
            "xdirector.demo.selvage",
            "director.xdemo.selvage",
            ".server.demo.selvage",
            "a.b.server.demo.selvage",
            "server.demo.selvage",
            "demo.selvage",
            ".demo.selvage",
            "director",
            "*.node.demo.selvag",
            "",
        ] {
            assert_eq!(Member::of_dns_name(name, "demo"), None, "{name}");
        }
    }

    #[test]
    fn a_certificate_is_good_for_its_own_role_only() {
        let role = |name: &str| Role::Node { name: name.to_owned(), incarnation: Incarnation(1), pid: 1 };
        let application = |name: &str| Role::Application { name: name.to_owned(), pid: 1 };
        let roles = [Role::Director, Role::Operator, role("s1"), role("n1"), role("node")];
        for member in members() {
            let may = roles.iter().filter(|role| member.may_be(role).is_ok()).count();
            assert_eq!(may, usize::from(!matches!(member, Member::Server(_))), "{member}");
            let may = ["s1", "n1", "node"].iter().filter(|name| member.may_be(&application(name)).is_ok());
            assert_eq!(may.count(), usize::from(matches!(member, Member::Node(_))), "{member}");
        }
        assert!(Member::Node("s1".to_owned()).may_be(&role("s1")).is_ok());
        assert!(Member::Server("s1".to_owned()).may_be(&role("s1")).is_err());
    }
}
