//! What travels between services: commands, replies and events, as [CloudEvents 1.0](https://github.com/cloudevents/spec).
//!
//! A [`Message`] is transport-neutral; a [transport](crate::transport) writes it as its binding says (over Kafka: the binary mode, one `ce_` header
//! an attribute). A command and its reply carry their [`CommandId`] and more in extension attributes, so that a participant can be written in any language:
//!
//! | attribute | in | meaning |
//! |---|---|---|
//! | `sagaid` | both | the saga, a UUID; also the `subject` and the key |
//! | `sagastep` | both | the step's name |
//! | `sagagen` | both | its generation: 0, and one more each time an operator retries what had failed for certain |
//! | `sagaop` | both | `do` or `undo` |
//! | `sagaattempt` | both | which attempt this is, from 1 |
//! | `replyto` | command | the topic for the reply |
//! | `sagaoutcome` | reply | `success`, `fail`, `retry` or `unknown` |
//!
//! A command's `id` is the step's idempotency key, with `/undo` behind for its undo: the same on every resend, which is how a participant recognises it. A
//! reply's `id` is new each time that it is sent: the orchestrator knows by the attributes what it has heard before.

use crate::{Class, Encoded, SagaId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// One message: a CloudEvent with the key that it is ordered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Unique for its source; a repeat has the same one.
    pub id: String,
    /// The contract's own name, with a version: `inventory.reserve.v1`.
    pub kind: String,
    /// Who sent it: a URI reference, such as the service's name.
    pub source: String,
    /// What it is about; of commands and replies the saga's id.
    pub subject: Option<String>,
    /// When it came into being.
    pub time: DateTime<Utc>,
    /// Messages of one key keep their order.
    pub key: String,
    /// Extension attributes, by their name in lower case letters and digits.
    pub extensions: BTreeMap<String, String>,
    /// Headers that are no attributes, forwarded untouched: `traceparent`, `tracestate`, `baggage`.
    pub headers: BTreeMap<String, String>,
    /// Of `data`; `application/json` unless said otherwise.
    pub content_type: String,
    /// The payload.
    pub data: Vec<u8>,
}

impl Message {
    /// An event about `key`, with a new id and the present time.
    pub fn event(source: impl Into<String>, kind: impl Into<String>, key: impl Into<String>, data: &Encoded) -> Self {
        let key = key.into();
        Self {
            id: uuid::Uuid::now_v7().to_string(),
            kind: kind.into(),
            source: source.into(),
            subject: Some(key.clone()),
            time: Utc::now(),
            key,
            extensions: BTreeMap::new(),
            headers: BTreeMap::new(),
            content_type: JSON.into(),
            data: data.as_str().as_bytes().to_vec(),
        }
    }
}

/// The content type of every command and reply.
pub const JSON: &str = "application/json";

/// Whether a command is to be done or undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// The step's own work.
    Do,
    /// Its compensation.
    Undo,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Do => "do",
            Self::Undo => "undo",
        })
    }
}

/// What a command and its undo have in common, and what a participant's barrier is kept by: one step of one saga, in one generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CommandId {
    /// The saga.
    pub saga: SagaId,
    /// The step's name.
    pub step: String,
    /// Grows when an operator retries what had failed for certain.
    pub generation: u32,
}

impl CommandId {
    /// The step's idempotency key: `<saga id>/<step>`, with `/<generation>` behind if that is not 0.
    pub fn key(&self) -> String {
        match self.generation {
            0 => format!("{}/{}", self.saga, self.step),
            generation => format!("{}/{}/{generation}", self.saga, self.step),
        }
    }

    /// The id of the message that carries the command.
    pub fn message_id(&self, op: Op) -> String {
        match op {
            Op::Do => self.key(),
            Op::Undo => format!("{}/undo", self.key()),
        }
    }
}

/// What a command's attributes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAttributes {
    /// Which step of which saga.
    pub id: CommandId,
    /// Do or undo.
    pub op: Op,
    /// Which attempt.
    pub attempt: u32,
    /// The topic for the reply.
    pub reply_to: String,
}

/// How a participant answers a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It happened, and this is the reply. Final.
    Success(Encoded),
    /// A business no: nothing happened, and under this key it never will. Final.
    Fail(String),
    /// Transient, nothing happened: send it again.
    Retry(String),
    /// It may have happened: send it again.
    Unknown(String),
}

impl Answer {
    /// Whether every repeat of the command is answered like this.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Success(_) | Self::Fail(_))
    }

    /// An answer that is no success.
    pub fn refusal(class: Class, error: String) -> Self {
        match class {
            Class::Retry => Self::Retry(error),
            Class::Fail => Self::Fail(error),
            Class::Unknown => Self::Unknown(error),
        }
    }

    /// The answer to a command that comes after its undo.
    pub fn undone() -> Self {
        Self::Fail("it was undone before it came".into())
    }

    const fn outcome(&self) -> &'static str {
        match self {
            Self::Success(_) => "success",
            Self::Fail(_) => "fail",
            Self::Retry(_) => "retry",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// What a reply's attributes say, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Which step of which saga.
    pub id: CommandId,
    /// Do or undo.
    pub op: Op,
    /// Of which attempt.
    pub attempt: u32,
    /// What the participant says.
    pub answer: Answer,
}

/// A message that is not what it was taken for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An attribute is not there.
    #[error("attribute `{0}` is missing")]
    Missing(&'static str),
    /// An attribute says something impossible.
    #[error("attribute `{attribute}` cannot be `{value}`")]
    Attribute {
        /// Which one.
        attribute: &'static str,
        /// What it says.
        value: String,
    },
    /// The payload cannot be read.
    #[error("the payload cannot be read: {0}")]
    Data(String),
}

const SAGA: &str = "sagaid";
const STEP: &str = "sagastep";
const GENERATION: &str = "sagagen";
const OP: &str = "sagaop";
const ATTEMPT: &str = "sagaattempt";
const REPLY_TO: &str = "replyto";
const OUTCOME: &str = "sagaoutcome";

#[derive(Serialize, Deserialize)]
struct Refusal {
    error: String,
}

impl CommandAttributes {
    /// The command as a message.
    pub fn message(&self, source: &str, kind: &str, data: &Encoded) -> Message {
        let mut extensions = shared(&self.id, self.op, self.attempt);
        extensions.insert(REPLY_TO.into(), self.reply_to.clone());
        Message {
            id: self.id.message_id(self.op),
            subject: Some(self.id.saga.to_string()),
            extensions,
            ..Message::event(source, kind, self.id.saga.to_string(), data)
        }
    }

    /// Reads a command's attributes.
    ///
    /// # Errors
    /// [`Malformed`], which names the attribute.
    pub fn of(message: &Message) -> Result<Self, Malformed> {
        let (id, op, attempt) = read_shared(message)?;
        Ok(Self { id, op, attempt, reply_to: attribute(message, REPLY_TO)?.to_owned() })
    }

    /// The reply to this command, as a message; `command` is the command as it came.
    pub fn reply(&self, source: &str, command: &Message, answer: &Answer) -> Message {
        let data = match answer {
            Answer::Success(reply) => reply.as_str().as_bytes().to_vec(),
            Answer::Fail(error) | Answer::Retry(error) | Answer::Unknown(error) => {
                // A string can always be written.
                serde_json::to_vec(&Refusal { error: error.clone() }).unwrap_or_default()
            }
        };
        let mut extensions = shared(&self.id, self.op, self.attempt);
        extensions.insert(OUTCOME.into(), answer.outcome().into());
        Message {
            id: uuid::Uuid::now_v7().to_string(),
            kind: format!("{}.reply", command.kind),
            source: source.into(),
            subject: Some(self.id.saga.to_string()),
            time: Utc::now(),
            key: self.id.saga.to_string(),
            extensions,
            headers: command.headers.clone(),
            content_type: JSON.into(),
            data,
        }
    }
}

impl Reply {
    /// Reads a reply.
    ///
    /// # Errors
    /// [`Malformed`], which names the attribute.
    pub fn of(message: &Message) -> Result<Self, Malformed> {
        let (id, op, attempt) = read_shared(message)?;
        let error = || match serde_json::from_slice::<Refusal>(&message.data) {
            Ok(refusal) => refusal.error,
            // Whatever a participant in another language gives as its reason is better than none.
            Err(_) => String::from_utf8_lossy(&message.data).into_owned(),
        };
        let answer = match attribute(message, OUTCOME)? {
            "success" if message.data.is_empty() => Answer::Success(Encoded::null()),
            "success" => {
                let reply = Encoded::from_bytes(&message.data);
                Answer::Success(reply.map_err(|error| Malformed::Data(error.to_string()))?)
            }
            "fail" => Answer::Fail(error()),
            "retry" => Answer::Retry(error()),
            "unknown" => Answer::Unknown(error()),
            other => return Err(Malformed::Attribute { attribute: OUTCOME, value: other.into() }),
        };
        Ok(Self { id, op, attempt, answer })
    }
}

fn shared(id: &CommandId, op: Op, attempt: u32) -> BTreeMap<String, String> {
    let attributes = [
        (SAGA, id.saga.to_string()),
        (STEP, id.step.clone()),
        (GENERATION, id.generation.to_string()),
        (OP, op.to_string()),
        (ATTEMPT, attempt.to_string()),
    ];
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn read_shared(message: &Message) -> Result<(CommandId, Op, u32), Malformed> {
    let op = match attribute(message, OP)? {
        "do" => Op::Do,
        "undo" => Op::Undo,
        other => return Err(Malformed::Attribute { attribute: OP, value: other.into() }),
    };
    let step = attribute(message, STEP)?.to_owned();
    let id = CommandId { saga: parsed(message, SAGA)?, step, generation: parsed(message, GENERATION)? };
    Ok((id, op, parsed(message, ATTEMPT)?))
}

fn attribute<'m>(message: &'m Message, name: &'static str) -> Result<&'m str, Malformed> {
    match message.extensions.get(name).map(String::as_str) {
        None | Some("") => Err(Malformed::Missing(name)),
        Some(value) => Ok(value),
    }
}

fn parsed<T: FromStr>(message: &Message, name: &'static str) -> Result<T, Malformed> {
    let value = attribute(message, name)?;
    value.parse().map_err(|_| Malformed::Attribute { attribute: name, value: value.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> (CommandAttributes, Message) {
        let id = CommandId { saga: SagaId::generate(), step: "reserve".into(), generation: 2 };
        let attributes = CommandAttributes { id, op: Op::Undo, attempt: 3, reply_to: "orders.replies".into() };
        let message = attributes.message("orders", "inventory.release.v1", &Encoded::of(&7).unwrap());
        (attributes, message)
    }

    #[test]
    fn a_command_reads_as_it_was_written() {
        let (attributes, message) = command();
        assert_eq!(CommandAttributes::of(&message).unwrap(), attributes);
        assert_eq!(message.id, format!("{}/reserve/2/undo", attributes.id.saga));
        assert_eq!(message.key, attributes.id.saga.to_string());
    }

    #[test]
    fn every_answer_reads_as_it_was_written() {
        let (attributes, message) = command();
        let success = Answer::Success(Encoded::of(&"r-1").unwrap());
        for answer in [success, Answer::Fail("no".into()), Answer::Retry("busy".into()), Answer::Unknown("?".into())] {
            let reply = attributes.reply("inventory", &message, &answer);
            let expected = Reply { id: attributes.id.clone(), op: Op::Undo, attempt: 3, answer };
            assert_eq!(Reply::of(&reply).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_missing_or_impossible_is_named() {
        let (_, mut message) = command();
        message.extensions.insert("sagaop".into(), "redo".into());
        assert_eq!(CommandAttributes::of(&message).unwrap_err().to_string(), "attribute `sagaop` cannot be `redo`");
        message.extensions.remove("sagaop");
        assert_eq!(CommandAttributes::of(&message).unwrap_err(), Malformed::Missing("sagaop"));
    }
}
