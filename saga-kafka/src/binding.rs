//! Messages as Kafka records: the [binary mode](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md) of
//! the CloudEvents binding. One header an attribute, the payload is the record's value, the key is the record's key.

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::{
    Message as _,
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
};
use saga_core::message::{JSON, Message};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

const PREFIX: &str = "ce_";
const CONTENT_TYPE: &str = "content-type";

/// What the client and the broker add to a record at most, besides key, headers and value.
pub(crate) const RECORD_OVERHEAD: usize = 64;
/// What they add to a header at most.
const HEADER_OVERHEAD: usize = 10;

/// Why a record is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("header `{0}` is missing")]
    Missing(&'static str),
    #[error("header `{0}` is not text")]
    NotText(String),
    #[error("header `{header}` cannot be `{value}`")]
    Value { header: &'static str, value: String },
    #[error("the key is not text")]
    Key,
}

/// The headers of a message.
pub(crate) fn headers(message: &Message) -> OwnedHeaders {
    let time = message.time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let mut headers = OwnedHeaders::new_with_capacity(8 + message.extensions.len() + message.headers.len());
    for_each_header(message, &time, |name, value| {
        let all = std::mem::replace(&mut headers, OwnedHeaders::new_with_capacity(0));
        headers = all.insert(Header { key: name, value: Some(value) });
    });
    headers
}

/// How many bytes a message takes at most.
pub(crate) fn size(message: &Message) -> usize {
    let mut size = RECORD_OVERHEAD + message.key.len() + message.data.len();
    // An RFC 3339 time has at most that many characters.
    let time = "2026-01-01T00:00:00.000000000+00:00";
    for_each_header(message, time, |name, value| size += HEADER_OVERHEAD + name.len() + value.len());
    size
}

fn for_each_header(message: &Message, time: &str, mut each: impl FnMut(&str, &str)) {
    each("ce_specversion", "1.0");
    each("ce_id", &message.id);
    each("ce_type", &message.kind);
    each("ce_source", &message.source);
    if let Some(subject) = &message.subject {
        each("ce_subject", subject);
    }
    each("ce_time", time);
    each(CONTENT_TYPE, &message.content_type);
    for (name, value) in &message.extensions {
        each(&format!("{PREFIX}{name}"), value);
    }
    for (name, value) in &message.headers {
        each(name, value);
    }
}

/// A record's headers, save those whose very name is no text: rdkafka panics at such a one, and its partition would be without its lane for good.
pub(crate) fn record_headers(record: &OwnedMessage) -> impl Iterator<Item = Header<'_, &[u8]>> {
    record.headers().into_iter().flat_map(|headers| {
        (0..headers.count()).filter_map(|place| catch_unwind(AssertUnwindSafe(|| headers.get(place))).ok())
    })
}

/// Reads a record. Of headers that are no attributes, those that are not text are left out.
///
/// A header without a value is one that is not there: change data capture places columns in headers, and has no other
/// way to write a NULL.
pub(crate) fn read(record: &OwnedMessage) -> Result<Message, Unreadable> {
    let mut attributes = BTreeMap::new();
    let mut headers = BTreeMap::new();
    for header in record_headers(record) {
        let Some(value) = header.value else { continue };
        let text = std::str::from_utf8(value);
        match (header.key.strip_prefix(PREFIX), text) {
            (Some(name), Ok(text)) => attributes.insert(name.to_owned(), text.to_owned()),
            (Some(_), Err(_)) => return Err(Unreadable::NotText(header.key.into())),
            (None, Ok(text)) => headers.insert(header.key.to_owned(), text.to_owned()),
            (None, Err(_)) => None,
        };
    }
    let mut required = |header: &'static str| {
        let name = header.strip_prefix(PREFIX).unwrap_or(header);
        attributes.remove(name).filter(|value| !value.is_empty()).ok_or(Unreadable::Missing(header))
    };
    let version = required("ce_specversion")?;
    if version != "1.0" {
        return Err(Unreadable::Value { header: "ce_specversion", value: version });
    }
    let (id, kind, source) = (required("ce_id")?, required("ce_type")?, required("ce_source")?);
    let time = match attributes.remove("time") {
        Some(time) => DateTime::parse_from_rfc3339(&time)
            .map_err(|_| Unreadable::Value { header: "ce_time", value: time })?
            .with_timezone(&Utc),
        // Optional in CloudEvents: then it is the record's.
        None => record.timestamp().to_millis().and_then(DateTime::from_timestamp_millis).unwrap_or_default(),
    };
    Ok(Message {
        id,
        kind,
        source,
        subject: attributes.remove("subject"),
        time,
        key: String::from_utf8(record.key().unwrap_or_default().to_vec()).map_err(|_| Unreadable::Key)?,
        content_type: headers.remove(CONTENT_TYPE).unwrap_or_else(|| JSON.into()),
        extensions: attributes,
        headers,
        data: record.payload().unwrap_or_default().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::Timestamp;
    use saga_core::Encoded;

    fn record(headers: OwnedHeaders, key: Option<&[u8]>, value: Option<&[u8]>) -> OwnedMessage {
        let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
        OwnedMessage::new(owned(value), owned(key), "t".into(), Timestamp::CreateTime(5), 0, 0, Some(headers))
    }

    fn message() -> Message {
        let mut message = Message::event("shop", "order.confirmed.v1", "o-1", &Encoded::of(&"ä").unwrap());
        message.extensions.insert("sagaid".into(), "7".into());
        message.headers.insert("traceparent".into(), "00-0-0-00".into());
        message
    }

    fn bare() -> OwnedHeaders {
        [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_type", "t"), ("ce_source", "s")]
            .into_iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value) }))
    }

    #[test]
    fn a_message_reads_as_it_was_written() {
        let message = message();
        let record = record(headers(&message), Some(message.key.as_bytes()), Some(&message.data));
        assert_eq!(read(&record).unwrap(), message);
    }

    #[test]
    fn what_cloudevents_leaves_open_has_a_default() {
        let message = read(&record(bare(), None, None)).unwrap();
        assert_eq!((message.subject, message.key.as_str(), message.data.len()), (None, "", 0));
        assert_eq!((message.content_type.as_str(), message.time.timestamp_millis()), (JSON, 5));
    }

    #[test]
    fn what_is_wrong_with_a_record_is_named() {
        let reading =
            |headers: OwnedHeaders, key: Option<&[u8]>| read(&record(headers, key, None)).unwrap_err().to_string();
        assert_eq!(reading(OwnedHeaders::new(), None), "header `ce_specversion` is missing");
        let dated = bare().insert(Header { key: "ce_time", value: Some("noon") });
        assert_eq!(reading(dated, None), "header `ce_time` cannot be `noon`");
        let binary = bare().insert(Header { key: "ce_sagaid", value: Some(&[0xff_u8][..]) });
        assert_eq!(reading(binary, None), "header `ce_sagaid` is not text");
        assert_eq!(reading(bare(), Some(&[0xff])), "the key is not text");
    }

    #[test]
    fn a_header_without_a_value_is_not_there() {
        let bare_and =
            |names: &[&str]| names.iter().fold(bare(), |all, key| all.insert(Header { key, value: None::<&[u8]> }));
        let optional = ["ce_subject", "ce_time", "ce_sagaid", "content-type", "traceparent"];
        let of = |headers| read(&record(headers, None, None));
        assert_eq!(of(bare_and(&optional)), of(bare()));
        assert_eq!(of(bare_and(&["ce_id"])), of(bare()), "the one with a value counts");
        let nothing = OwnedHeaders::new().insert(Header { key: "ce_specversion", value: None::<&[u8]> });
        assert_eq!(of(nothing).unwrap_err(), Unreadable::Missing("ce_specversion"));
    }

    #[test]
    fn other_headers_that_are_not_text_are_left_out() {
        let headers = bare().insert(Header { key: "binary", value: Some(&[0xff_u8][..]) });
        assert_eq!(read(&record(headers, None, None)).unwrap().headers, BTreeMap::new());
    }
}
