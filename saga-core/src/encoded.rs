mod finite;

use finite::Finite;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, fmt, sync::Arc};

/// What a saga can take as input, pass between its steps and return: anything that serde can write and read back.
///
/// Implemented for every such type. A payload is written once, when it comes into being, and what is read
/// later is always that text: a retry, another node and a compensation all see the same bytes.
///
/// Every number of serde's is read back bit for bit. JSON has no NaN and no infinity: a payload with one of them is
/// refused where it is written.
pub trait Payload: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Payload for T {}

/// A payload in its encoded form: JSON text, kept byte for byte as it was first written.
#[derive(Clone)]
pub struct Encoded(Arc<RawValue>);

/// A payload could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be {done} as JSON: {source}")]
pub struct CodecError {
    what: &'static str,
    done: &'static str,
    source: serde_json::Error,
}

impl Encoded {
    /// Writes a payload.
    ///
    /// # Errors
    /// When the type's `Serialize` refuses, a map has keys that are no strings, or a number is a NaN or infinite.
    pub fn of<T: Serialize>(value: &T) -> Result<Self, CodecError> {
        let written = serde_json::value::to_raw_value(value).and_then(|raw| {
            // What is not finite was written as `null`; where there is none, there is nothing to look for.
            if raw.get().contains("null") {
                value.serialize(Finite)?;
            }
            Ok(Self(raw.into()))
        });
        written.map_err(|source| CodecError { what: std::any::type_name::<T>(), done: "written", source })
    }

    /// Writes a payload that has to be readable as what it was: some types write what they cannot read (a deep tree,
    /// say), and that is better known where it is written than where it is read.
    ///
    /// # Errors
    /// As [`of`](Self::of) and [`decode`](Self::decode).
    pub(crate) fn of_readable<T: Serialize + DeserializeOwned>(value: &T) -> Result<Self, CodecError> {
        let written = Self::of(value)?;
        written.decode::<T>()?;
        Ok(written)
    }

    /// JSON's `null`: what `()` is written as.
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned().into())
    }

    /// Reads the payload as a `T`.
    ///
    /// # Errors
    /// When the text is not a `T`: mostly because the type changed while sagas of the same version were running.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        serde_json::from_str(self.0.get()).map_err(|source| CodecError {
            what: std::any::type_name::<T>(),
            done: "read",
            source,
        })
    }

    /// Takes stored bytes back.
    ///
    /// # Errors
    /// When the bytes are not JSON.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        serde_json::from_slice::<Box<RawValue>>(bytes).map(|raw| Self(raw.into())).map_err(|source| CodecError {
            what: "a stored payload",
            done: "read",
            source,
        })
    }

    /// Whether two payloads say the same: objects may list their members in any order, everything else is compared letter by letter, so that
    /// no number is rounded.
    pub fn means_the_same(&self, other: &Self) -> bool {
        same_json(self.as_str(), other.as_str())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

fn same_json(one: &str, other: &str) -> bool {
    type Object<'t> = BTreeMap<String, &'t RawValue>;
    type Array<'t> = Vec<&'t RawValue>;
    if one == other {
        return true;
    }
    if let (Ok(one), Ok(other)) = (serde_json::from_str::<Object<'_>>(one), serde_json::from_str::<Object<'_>>(other)) {
        let same =
            |key: &String, value: &RawValue| other.get(key).is_some_and(|other| same_json(value.get(), other.get()));
        return one.len() == other.len() && one.iter().all(|(key, value)| same(key, value));
    }
    if let (Ok(one), Ok(other)) = (serde_json::from_str::<Array<'_>>(one), serde_json::from_str::<Array<'_>>(other)) {
        return one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_json(one.get(), other.get()));
    }
    false
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Encoded {}

impl std::hash::Hash for Encoded {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(raw.into()))
    }
}
