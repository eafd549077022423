//! What is on its way to the broker: one call for each topic, so that none waits for another's answer.

use super::{plan::Sending, topics::Topics};
use futures::FutureExt;
use saga_core::{
    trace::{Tracing, UnderWay},
    transport::{Outgoing, PublishError, Transport},
};
use std::{
    collections::{BTreeMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{AbortHandle, JoinSet};

/// An answer comes in time within this.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
/// So much may be on its way without a round that waits for it: less than a client of Kafka holds at once, which other
/// topics need too.
const MOST_EVENTS: usize = 4_000;
const MOST_BYTES: usize = 32 * 1024 * 1024;

pub(super) struct Calls {
    transport: Arc<dyn Transport>,
    tracing: Tracing,
    /// Each is a task of its own: it goes on while the lane is at its database. Dropped with the lane.
    under_way: JoinSet<(u64, Answer)>,
    /// By their numbers, which grow.
    open: BTreeMap<u64, Open>,
    next: u64,
}

/// A call that has no answer yet.
struct Open {
    topic: String,
    events: usize,
    bytes: usize,
    abort: AbortHandle,
}

/// What became of a call.
pub(super) struct Answer {
    pub(super) topic: String,
    pub(super) sending: Vec<Sending>,
    /// In the order of `sending`; a transport that panicked gave none.
    pub(super) answers: Vec<Result<(), PublishError>>,
    /// How long it took from when the events were read.
    pub(super) took: Duration,
}

impl Answer {
    pub(super) fn is_in_time(&self) -> bool {
        self.took <= PATIENCE
    }
}

impl Calls {
    pub(super) fn new(transport: Arc<dyn Transport>, tracing: &Tracing) -> Self {
        let tracing = tracing.clone().over(transport.system());
        Self { transport, tracing, under_way: JoinSet::new(), open: BTreeMap::new(), next: 0 }
    }

    /// Publishes events of a topic.
    pub(super) fn begin(&mut self, topics: &mut Topics, topic: String, sending: Vec<Sending>, messages: Vec<Outgoing>) {
        topics.called(&topic);
        let (events, bytes) = (sending.len(), messages.iter().map(|outgoing| outgoing.message.data.len()).sum());
        let (call, called) = (self.next, topic.clone());
        let (transport, began) = (self.transport.clone(), Instant::now());
        let sendings: Vec<UnderWay> =
            messages.iter().map(|Outgoing { topic, message }| self.tracing.forward(topic, message)).collect();
        let abort = self.under_way.spawn(async move {
            let answers = AssertUnwindSafe(transport.publish(&messages)).catch_unwind().await;
            let answers = answers.unwrap_or_else(|_| {
                tracing::error!("the transport panicked: what it was to publish is tried again");
                vec![]
            });
            for (answer, sending) in answers.iter().zip(sendings) {
                let _ = answer.as_ref().inspect_err(|error| sending.failed(*error));
            }
            (call, Answer { topic, sending, answers, took: began.elapsed() })
        });
        self.open.insert(call, Open { topic: called, events, bytes, abort });
        self.next += 1;
    }

    /// The next answer; `None` if nothing is on its way.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        loop {
            // What was given up has no answer.
            if let Ok((call, answer)) = self.under_way.join_next().await?
                && self.open.remove(&call).is_some()
            {
                return Some(answer);
            }
        }
    }

    /// Bounds what is on its way, when a round leaves its calls behind: the oldest that are not of this round are given
    /// up, as if their process had died. What they had sent is sent again when their topic's turn comes.
    pub(super) fn make_room(&mut self, topics: &mut Topics, of_this_round: &HashSet<String>) {
        while self.open.values().map(|open| open.events).sum::<usize>() > MOST_EVENTS
            || self.open.values().map(|open| open.bytes).sum::<usize>() > MOST_BYTES
        {
            let oldest = self.open.iter().find(|(_, open)| !of_this_round.contains(&open.topic));
            let Some(open) = oldest.map(|(call, _)| *call).and_then(|call| self.open.remove(&call)) else {
                return;
            };
            open.abort.abort();
            topics.given_up(&open.topic);
            tracing::warn!(
                topic = open.topic,
                "the broker does not answer for a topic: its events are sent again later"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{plan::Batch, row::Row};
    use saga_core::{
        Encoded,
        message::Message,
        transport::{Consumer, Receiver, Subscription, TransportError},
    };

    struct Silent;

    #[async_trait::async_trait]
    impl Transport for Silent {
        async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
            if batch[0].topic != "well" {
                std::future::pending::<()>().await;
            }
            vec![Ok(()); batch.len()]
        }

        async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
            Err(TransportError("it is only published to".into()))
        }

        fn system(&self) -> &'static str {
            "local"
        }

        fn max_message_bytes(&self) -> usize {
            1_000_000
        }
    }

    fn begin(calls: &mut Calls, topics: &mut Topics, topic: &str, events: usize) {
        let message = Message::event("orders", "t", "a", &Encoded::null());
        let row = |seq| Row::of_test(topic, seq, message.clone());
        let Batch { sending, messages, .. } = Batch::of((0..events as i64).map(row).collect());
        calls.begin(topics, topic.into(), sending, messages);
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_bounded_and_the_oldest_is_given_up() {
        let (mut calls, mut topics) = (Calls::new(Arc::new(Silent), &Tracing::default()), Topics::new(200));
        for n in 0..6 {
            begin(&mut calls, &mut topics, &n.to_string(), MOST_EVENTS / 4);
            calls.make_room(&mut topics, &[n.to_string()].into());
        }
        let open: Vec<&str> = calls.open.values().map(|open| open.topic.as_str()).collect();
        assert_eq!(open, ["2", "3", "4", "5"]);
        assert!(!topics.is_waited_for("0") && topics.is_waited_for("2"));
        // Answers come all the same.
        begin(&mut calls, &mut topics, "well", 1);
        assert_eq!(calls.next().await.map(|answer| answer.topic).as_deref(), Some("well"));
        // A round may always leave what is its own.
        let (mut calls, mut topics) = (Calls::new(Arc::new(Silent), &Tracing::default()), Topics::new(200));
        begin(&mut calls, &mut topics, "large", 2 * MOST_EVENTS);
        calls.make_room(&mut topics, &["large".to_owned()].into());
        assert_eq!(calls.open.len(), 1);
    }
}
