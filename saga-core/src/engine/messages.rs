//! Commands out, replies in.
//!
//! A command is an event first: it is published after the append that says what it says, and again, under the same id,
//! by whoever takes over. A reply counts as received when it is durable: that its saga has heard it, if the saga is in
//! memory here; else, that it is in the saga's mailbox, like anything from outside, for the owner to fold. So a reply may
//! come to any node, twice, both ways, late, or early (before its publication was acknowledged), and what does not apply
//! any more changes nothing.

use super::{Shared, drive::Letter};
use crate::{
    Encoded,
    definition::Sending,
    message::{CommandAttributes, Message, Reply},
    portions::portions,
    store::{Hint, Mail, Posted, StoreError},
    trace::Tracing,
    transport::{
        Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError, Unavailable, Verdict,
    },
};
use async_trait::async_trait;
use futures::future::{join, join_all};
use opentelemetry::Context;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// How many replies are put into mailboxes at a time.
const REPLIES_AT_A_TIME: usize = 500;
/// So many bytes of them go into one statement, about.
const PORTION: usize = 1 << 20;
const LEAST_PORTION: usize = 16 << 10;
/// So many statements of that kind at a time, however many partitions there are: connections are needed for more.
const POSTS: usize = 4;
/// How long sagas in memory may take to hear replies, before these go into mailboxes, and others for a while.
const A_MOMENT: Duration = Duration::from_millis(500);
const A_WHILE: Duration = Duration::from_secs(5);

/// The way to the participants.
pub(crate) struct Messages {
    pub(crate) service: String,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) tracing: Tracing,
}

impl Messages {
    /// Where this service's replies go.
    pub(crate) fn reply_to(&self) -> String {
        format!("{}.replies", self.service)
    }

    /// Publishes a command.
    pub(crate) async fn send(self: Arc<Self>, topic: &'static str, mut message: Message) -> Result<(), PublishError> {
        let sending = self.tracing.send(topic, &mut message, &Context::current());
        let outgoing = [Outgoing { topic: topic.into(), message }];
        let answer = self.transport.publish(&outgoing).await.pop();
        let answer = answer.unwrap_or_else(|| Err(PublishError::Unavailable("the transport gave no answer".into())));
        answer.inspect_err(|error| sending.failed(error))
    }

    /// A command as a message.
    pub(crate) fn message(&self, attributes: &CommandAttributes, sending: &Sending, body: &Encoded) -> Message {
        attributes.message(&self.service, sending.kind, body)
    }
}

/// Begins to receive replies.
pub(crate) async fn receive(shared: Arc<Shared>, messages: &Messages) -> Result<Box<dyn Consumer>, TransportError> {
    let subscription =
        Subscription { group: messages.service.clone(), topics: vec![messages.reply_to()], batch: REPLIES_AT_A_TIME };
    let (tracing, topic) = (messages.tracing.clone(), messages.reply_to());
    messages.transport.subscribe(subscription, Arc::new(Replies::new(shared, tracing, topic))).await
}

struct Replies {
    shared: Arc<Shared>,
    tracing: Tracing,
    topic: String,
    /// Some sagas took long to hear: until then replies go into mailboxes, where they hold up no others.
    slow_until: Mutex<Option<Instant>>,
    /// How many bytes go into one statement, about: fewer where there was no answer.
    portion: AtomicUsize,
    posts: Semaphore,
}

#[async_trait]
impl Receiver for Replies {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let mut verdicts = vec![Verdict::Done; batch.len()];
        let _processing: Vec<Context> =
            batch.iter().map(|message| self.tracing.process(&self.topic, message)).collect();
        let (mut for_mailboxes, mut handed) = (vec![], vec![]);
        let slow = self.is_slow();
        for (place, message) in batch.iter().enumerate() {
            match Reply::of(message) {
                Ok(reply) if slow => for_mailboxes.push((place, reply)),
                Ok(reply) => match self.shared.hand(&message.id, reply) {
                    Ok(heard) => handed.push((place, heard)),
                    Err(reply) => for_mailboxes.push((place, reply)),
                },
                Err(error) => verdicts[place] = Verdict::DeadLetter(error.to_string()),
            }
        }
        let until = Instant::now() + A_MOMENT;
        let unheard = handed.into_iter().map(|(place, heard)| async move {
            match timeout_at(until, heard).await {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some((place, false)),
                Err(_) => Some((place, true)),
            }
        });
        let (posted, unheard) = join(self.post(batch, for_mailboxes, &mut verdicts), join_all(unheard)).await;
        posted?;
        let unheard: Vec<(usize, bool)> = unheard.into_iter().flatten().collect();
        if unheard.iter().any(|(_, late)| *late) {
            *self.slow_until() = Some(Instant::now() + A_WHILE);
        }
        let again = |(place, _): (usize, bool)| Some((place, Reply::of(&batch[place]).ok()?));
        self.post(batch, unheard.into_iter().filter_map(again).collect(), &mut verdicts).await?;
        Ok(verdicts)
    }
}

impl Replies {
    fn new(shared: Arc<Shared>, tracing: Tracing, topic: String) -> Self {
        let (portion, posts) = (AtomicUsize::new(PORTION), Semaphore::new(POSTS));
        Self { shared, tracing, topic, slow_until: Mutex::default(), portion, posts }
    }

    fn slow_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.slow_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_slow(&self) -> bool {
        self.slow_until().is_some_and(|until| Instant::now() < until)
    }

    /// Puts replies into their sagas' mailboxes, each with its place in the batch.
    async fn post(
        &self,
        batch: &[Message],
        replies: Vec<(usize, Reply)>,
        verdicts: &mut [Verdict],
    ) -> Result<(), Unavailable> {
        let (mut mail, mut places) = (vec![], vec![]);
        for (place, reply) in replies {
            let saga = reply.id.saga;
            match serde_json::to_vec(&Letter::Reply(reply)) {
                Ok(body) => {
                    mail.push(Mail { saga, message: batch[place].id.clone(), body });
                    places.push(place);
                }
                Err(error) => verdicts[place] = Verdict::DeadLetter(error.to_string()),
            }
        }
        if mail.is_empty() {
            return Ok(());
        }
        let mut for_others = false;
        for ((posted, mail), place) in self.posted(&mail).await?.into_iter().zip(mail).zip(places) {
            match posted {
                Ok(Posted::Accepted) => for_others |= !self.shared.deliver(mail),
                Ok(Posted::Ended) => {
                    tracing::debug!(saga = %mail.saga, reply = mail.message, "a reply to a saga that has ended")
                }
                Ok(Posted::NoSuchSaga) => {
                    let reason = format!("there is no saga {} in the store of `{}`", mail.saga, batch[place].source);
                    verdicts[place] = Verdict::DeadLetter(reason);
                }
                Err(reason) => verdicts[place] = Verdict::DeadLetter(reason),
            }
        }
        if for_others {
            self.shared.store.hint(Hint::Mail);
        }
        Ok(())
    }

    /// In portions, which a slow network brings in time. What the store refuses is not to keep its neighbours from their
    /// mailboxes: it is looked for by halves.
    async fn posted(&self, mail: &[Mail]) -> Result<Vec<Result<Posted, String>>, Unavailable> {
        let mut answers = vec![];
        let portion = self.portion.load(Ordering::Relaxed);
        let mut parts: Vec<&[Mail]> = portions(mail, portion, |mail| mail.body.len()).collect();
        parts.reverse();
        while let Some(part) = parts.pop() {
            // The semaphore is never closed.
            let post = self.posts.acquire().await;
            let posted = self.shared.store.post(part).await;
            drop(post);
            match posted {
                Ok(posted) => answers.extend(posted.into_iter().map(Ok)),
                Err(StoreError::Rejected(reason)) if part.len() == 1 => answers.push(Err(reason)),
                Err(StoreError::Rejected(_)) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                // They come again, and then in smaller portions: it may have been too much for the time that there is.
                Err(error) => {
                    self.portion.store((portion / 4).max(LEAST_PORTION), Ordering::Relaxed);
                    return Err(Unavailable(error.to_string()));
                }
            }
        }
        self.portion.store((2 * portion).min(PORTION), Ordering::Relaxed);
        Ok(answers)
    }
}
