//! Errands: what the director has a node's steward do for operators and applications, about sessions that the
//! node hosts. Each is bounded in size by its own limits (see [`crate::limits`]) and in time by the message
//! that carries it.

use crate::ident::{SessionId, Version};
use serde::{Deserialize, Serialize};

/// Something to be done with sessions of one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Errand {
    /// Name the sessions, a piece at a time. They are as they were when each was looked at: what comes and
    /// goes meanwhile may be missing.
    List {
        /// Only this owner's.
        owner: Option<String>,
        /// Where to begin: 0, or `next` of the piece before.
        cursor: u32,
        /// At most so many.
        limit: u32,
    },
    /// Describe one session.
    Show {
        /// The session.
        id: SessionId,
        /// With the attributes' values, which may be personal.
        values: bool,
    },
    /// Destroy sessions, as their users would (R9).
    Destroy(Doomed),
}

/// What is to be destroyed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Doomed {
    /// One session.
    Session(SessionId),
    /// Every session of an owner.
    Owner(String),
}

/// How an errand ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ErrandOutcome {
    /// A piece of the list.
    Listed {
        /// The sessions.
        sessions: Vec<SessionFacts>,
        /// Where the next piece begins; `None` at the end.
        next: Option<u32>,
    },
    /// The session; `None` if this node does not host it.
    Shown(Option<Box<SessionDetail>>),
    /// Sessions are gone: each has its tombstone acked wherever it had a copy.
    Destroyed {
        /// How many.
        sessions: u64,
        /// What is not done, for people; `None`: this node hosts nothing of it any more.
        left: Option<String>,
    },
    /// It could not be done; for people.
    Failed(String),
}

/// What a node knows of a session without looking into it, and its owner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionFacts {
    /// The session.
    pub id: SessionId,
    /// The user it belongs to.
    pub owner: Option<String>,
    /// Its version.
    pub version: Version,
    /// Servers of the view that have acked this version.
    pub copies: u32,
    /// When it was created, Unix ms.
    pub created_ms: u64,
    /// When it ends if nobody uses it, Unix ms.
    pub expiry_ms: u64,
    /// When it ends at the latest, Unix ms.
    pub absolute_ms: u64,
    /// Bytes of its archive.
    pub bytes: u32,
    /// A request has its lock.
    pub locked: bool,
}

/// A session and what is in it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SessionDetail {
    /// The session.
    pub facts: SessionFacts,
    /// Its attributes, sorted by name.
    pub attributes: Vec<AttributeFacts>,
}

/// An attribute.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AttributeFacts {
    /// Its name.
    pub name: String,
    /// What its value is.
    pub kind: AttributeKind,
    /// Bytes of its value.
    pub bytes: u32,
    /// Its value, if it was asked for; only its beginning if it is long, and none if the answer is full.
    pub value: Option<AttributeValue>,
}

/// What an attribute's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum AttributeKind {
    Bytes,
    Text,
    I64,
    F64,
    Bool,
}

/// An attribute's value, or the beginning of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum AttributeValue {
    Bytes(Vec<u8>),
    Text(String),
    I64(i64),
    F64(f64),
    Bool(bool),
}
