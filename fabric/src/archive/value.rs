//! Typed attribute values, owned and borrowed.

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any bytes.
    Bytes(Vec<u8>),
    /// UTF-8 text.
    Text(String),
    /// A signed integer.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// A truth value.
    Bool(bool),
}

/// An attribute's value where it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueRef<'a> {
    /// Any bytes.
    Bytes(&'a [u8]),
    /// UTF-8 text.
    Text(&'a str),
    /// A signed integer.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// A truth value.
    Bool(bool),
}

impl Value {
    /// The same value, borrowed.
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Bytes(bytes) => ValueRef::Bytes(bytes),
            Self::Text(text) => ValueRef::Text(text),
            Self::I64(number) => ValueRef::I64(*number),
            Self::F64(number) => ValueRef::F64(*number),
            Self::Bool(truth) => ValueRef::Bool(*truth),
        }
    }
}

impl ValueRef<'_> {
    /// The same value, owned.
    pub fn to_owned(self) -> Value {
        match self {
            Self::Bytes(bytes) => Value::Bytes(bytes.to_vec()),
            Self::Text(text) => Value::Text(text.to_owned()),
            Self::I64(number) => Value::I64(number),
            Self::F64(number) => Value::F64(number),
            Self::Bool(truth) => Value::Bool(truth),
        }
    }
}
