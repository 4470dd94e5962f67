//! A whole session as JSON, so that every web server gives the same answer. The form is documented at
//! `selvage_session_json`. Callers: session.

use data_encoding::BASE64;
use selvage_fabric::archive::ValueRef;
use selvage_fabric::node::Session;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::guard::Failure;
use crate::status::selvage_status;

/// The session as JSON.
///
/// # Errors
/// None that can be named: writing to memory does not fail.
pub fn of(session: &Session, node: &str) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(&Whole { session, node }).map_err(|error| {
        Failure::new(selvage_status::Internal, format!("a session cannot be said as JSON: {error}"))
    })
}

struct Whole<'a> {
    session: &'a Session,
    node: &'a str,
}

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("id", &self.session.id().to_string())?;
        map.serialize_entry("node", self.node)?;
        map.serialize_entry("copies", &self.session.copies())?;
        map.serialize_entry("version", &self.session.version().to_string())?;
        map.serialize_entry("attributes", &Attributes(|| self.session.iter()))?;
        map.end()
    }
}

/// Attributes, from a function that begins to read them anew.
struct Attributes<F>(F);

impl<'a, I, F> Serialize for Attributes<F>
where
    I: Iterator<Item = (&'a str, ValueRef<'a>)>,
    F: Fn() -> I,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in (self.0)() {
            map.serialize_entry(name, &Attribute(value))?;
        }
        map.end()
    }
}

struct Attribute<'a>(ValueRef<'a>);

impl Serialize for Attribute<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            ValueRef::Text(text) => serializer.serialize_str(text),
            ValueRef::I64(number) => serializer.serialize_i64(number),
            ValueRef::F64(number) => serializer.serialize_f64(number),
            ValueRef::Bool(truth) => serializer.serialize_bool(truth),
            ValueRef::Bytes(bytes) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &BASE64.encode(bytes))?;
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_documented_form() {
        let values = [
            ("b", ValueRef::Bytes(&[0, 255, 1])),
            ("f", ValueRef::F64(1.5)),
            ("i", ValueRef::I64(i64::MIN)),
            ("n", ValueRef::F64(f64::NAN)),
            ("t", ValueRef::Text("a \"quote\" and \u{e4}")),
            ("x", ValueRef::Bool(true)),
        ];
        let json = serde_json::to_string(&Attributes(|| values.iter().copied())).unwrap();
        let expected = concat!(
            r#"{"b":{"base64":"AP8B"},"f":1.5,"i":-9223372036854775808,"n":null,"#,
            r#""t":"a \"quote\" and ä","x":true}"#
        );
        assert_eq!(json, expected);
    }
}
