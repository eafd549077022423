//! What is to be sent of what was read, and what follows from the answers.

use super::row::Row;
use saga_core::transport::{Outgoing, PublishError};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// What order is kept by: a topic and a key.
pub(super) type Key = (String, String);

/// Where a row is: its shard and its number.
pub(super) type Place = (i16, i64);

/// A row that is to be sent, without its message.
pub(super) struct Sending {
    pub(super) place: Place,
    pub(super) age: Duration,
    key: Key,
    followed: bool,
}

/// What was read, divided.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) sending: Vec<Sending>,
    /// One for each of `sending`.
    pub(super) messages: Vec<Outgoing>,
    /// To be put aside without asking the broker: with a reason what makes no message, without one what comes behind a parked event.
    pub(super) aside: Vec<(Place, Option<String>)>,
}

impl Batch {
    pub(super) fn of(rows: Vec<Row>) -> Self {
        let (mut batch, mut parked) = (Self::default(), HashSet::new());
        for row in rows {
            let Row { shard, seq, age, behind, followed, outgoing, topic, key } = row;
            let (place, key) = ((shard, seq), (topic, key));
            match outgoing {
                _ if behind || parked.contains(&key) => batch.aside.push((place, None)),
                Ok(message) => {
                    batch.sending.push(Sending { place, age, key, followed });
                    batch.messages.push(message);
                }
                Err(reason) => {
                    batch.aside.push((place, Some(reason)));
                    parked.insert(key);
                }
            }
        }
        batch
    }
}

/// What follows from the broker's answers.
#[derive(Default)]
pub(super) struct Plan {
    /// What the broker has, with its age when it was read.
    pub(super) sent: Vec<(Place, Duration)>,
    /// Keys that were parked because of what the broker has now, with their shards.
    pub(super) freed: Vec<(i16, Key)>,
    /// To be put aside: with a reason what was refused, without one what comes behind it.
    pub(super) aside: Vec<(Place, Option<String>)>,
    /// The keys that are to be tried again, and why.
    pub(super) waiting: HashMap<Key, String>,
    /// Whether the broker took anything, or refused it for good.
    pub(super) took: bool,
}

impl Plan {
    /// What was answered stands by itself: an event that the broker has is never sent again, whatever became of one before it. A refusal
    /// counts only if nothing of its key still waits before it; else it is asked for again when its turn comes.
    pub(super) fn of(sending: Vec<Sending>, answers: Vec<Result<(), PublishError>>) -> Self {
        let silent = || Err(PublishError::Unavailable("the transport gave no answer".into()));
        let answers = answers.into_iter().chain(std::iter::repeat_with(silent));
        let (mut plan, mut parked) = (Self::default(), HashSet::new());
        for (Sending { place, age, key, followed }, answer) in sending.into_iter().zip(answers) {
            match answer {
                Ok(()) => {
                    plan.sent.push((place, age));
                    plan.freed.extend(followed.then_some((place.0, key)));
                    plan.took = true;
                }
                Err(_) if plan.waiting.contains_key(&key) => {}
                Err(_) if parked.contains(&key) => plan.aside.push((place, None)),
                Err(PublishError::Refused(reason)) => {
                    plan.aside.push((place, Some(reason)));
                    plan.took = true;
                    parked.insert(key);
                }
                Err(PublishError::Unavailable(reason)) => {
                    plan.waiting.insert(key, reason);
                }
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saga_core::{Encoded, message::Message};

    fn row(seq: i64, key: &str) -> Row {
        Row::of_test("events", seq, Message::event("orders", "t", key, &Encoded::null()))
    }

    fn refused() -> Result<(), PublishError> {
        Err(PublishError::Refused("no".into()))
    }

    fn unavailable() -> Result<(), PublishError> {
        Err(PublishError::Unavailable("away".into()))
    }

    fn plan(keys: &[&str], answers: Vec<Result<(), PublishError>>) -> Plan {
        let rows = (1..).zip(keys).map(|(seq, key)| row(seq, key)).collect();
        Plan::of(Batch::of(rows).sending, answers)
    }

    fn seqs(plan: &Plan) -> (Vec<i64>, Vec<(i64, bool)>, Vec<&str>) {
        let sent = plan.sent.iter().map(|((_, seq), _)| *seq).collect();
        let aside = plan.aside.iter().map(|((_, seq), reason)| (*seq, reason.is_some())).collect();
        (sent, aside, plan.waiting.keys().map(|(_, key)| key.as_str()).collect())
    }

    #[test]
    fn answers_count_one_by_one() {
        let plan = plan(&["a", "b", "c", "a"], vec![Ok(()), unavailable(), refused(), Ok(())]);
        assert_eq!(seqs(&plan), (vec![1, 4], vec![(3, true)], vec!["b"]));
    }

    #[test]
    fn what_comes_behind_a_refused_event_is_put_aside_unless_the_broker_has_it() {
        let plan = plan(&["a", "a", "a", "a"], vec![refused(), Ok(()), refused(), unavailable()]);
        assert_eq!(seqs(&plan), (vec![2], vec![(1, true), (3, false), (4, false)], vec![]));
    }

    #[test]
    fn a_refusal_behind_an_event_that_waits_is_no_refusal_yet() {
        let plan = plan(&["a", "a"], vec![unavailable(), refused()]);
        assert_eq!(seqs(&plan), (vec![], vec![], vec!["a"]));
    }

    #[test]
    fn an_event_without_an_answer_waits() {
        let plan = plan(&["a", "b"], vec![Ok(())]);
        assert_eq!(seqs(&plan), (vec![1], vec![], vec!["b"]));
    }

    #[test]
    fn what_was_parked_frees_its_key_when_the_broker_has_it_and_not_before() {
        let rows = || vec![Row { followed: true, ..row(1, "a") }];
        assert_eq!(Plan::of(Batch::of(rows()).sending, vec![refused()]).freed, []);
        assert_eq!(Plan::of(Batch::of(rows()).sending, vec![unavailable()]).freed, []);
        assert_eq!(Plan::of(Batch::of(rows()).sending, vec![Ok(())]).freed, [(0, ("events".into(), "a".into()))]);
    }

    #[test]
    fn what_makes_no_message_is_put_aside_with_what_comes_behind_it() {
        let broken = Row { outgoing: Err("broken".into()), ..row(1, "a") };
        let behind = Row { behind: true, ..row(3, "b") };
        let batch = Batch::of(vec![broken, row(2, "a"), behind, row(4, "c")]);
        assert_eq!(batch.aside, [((0, 1), Some("broken".into())), ((0, 2), None), ((0, 3), None)]);
        assert_eq!(batch.sending[0].place, (0, 4));
    }
}
