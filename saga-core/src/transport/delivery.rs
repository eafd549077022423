use super::{Receiver, Unavailable, Verdict, local::size};
use crate::{error::panic_message, message::Message, portions::portions};
use futures::FutureExt;
use std::{panic::AssertUnwindSafe, pin::pin, time::Duration};
use tokio::time::sleep;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// So many bytes are handed to a receiver at a time, about.
const PORTION: usize = 4 << 20;

/// Gives a batch to a receiver, again and again until it has answered for it, as the [contract](super) says; for implementers of a transport.
///
/// A batch of more than four mebibytes comes to it in portions of that size, or of one message.
/// Pauses from 100 milliseconds to 5 seconds lie between the tries. A receiver that panics, or gives a wrong number of verdicts, is given the batch once more, and then its messages
/// one by one; the one that it breaks on even then is a dead letter. `None` if `stop` ended first: it is heeded between the tries only, so that what is under way ends.
pub async fn deliver(
    receiver: &dyn Receiver,
    batch: &[Message],
    stop: impl Future<Output = ()>,
) -> Option<Vec<Verdict>> {
    let mut stop = pin!(stop.fuse());
    let mut verdicts = Vec::with_capacity(batch.len());
    for portion in portions(batch, PORTION, size) {
        verdicts.extend(deliver_at_once(receiver, portion, &mut stop).await?);
    }
    Some(verdicts)
}

async fn deliver_at_once(
    receiver: &dyn Receiver,
    batch: &[Message],
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Option<Vec<Verdict>> {
    let mut pauses = Pauses(FIRST_PAUSE);
    let mut broke_before = false;
    loop {
        match attempt(receiver, batch).await {
            Tried::Answered(verdicts) => return Some(verdicts),
            Tried::Unavailable(reason) => tracing::warn!(messages = batch.len(), %reason, "a batch has to wait"),
            Tried::Broke(reason) if broke_before => {
                tracing::error!(messages = batch.len(), %reason, "a receiver broke again: its messages come one by one");
                break;
            }
            Tried::Broke(reason) => {
                tracing::error!(messages = batch.len(), %reason, "a receiver broke: its messages come again");
                broke_before = true;
            }
        }
        pauses.wait(stop).await?;
    }
    let mut verdicts = Vec::with_capacity(batch.len());
    for message in batch.chunks(1) {
        let mut pauses = Pauses(FIRST_PAUSE);
        loop {
            match attempt(receiver, message).await {
                Tried::Answered(one) => {
                    verdicts.extend(one);
                    break;
                }
                Tried::Broke(reason) => {
                    verdicts.push(Verdict::DeadLetter(reason));
                    break;
                }
                Tried::Unavailable(_) => pauses.wait(stop).await?,
            }
        }
    }
    Some(verdicts)
}

enum Tried {
    Answered(Vec<Verdict>),
    Unavailable(String),
    Broke(String),
}

async fn attempt(receiver: &dyn Receiver, batch: &[Message]) -> Tried {
    match AssertUnwindSafe(async { receiver.receive(batch).await }).catch_unwind().await {
        Ok(Ok(verdicts)) if verdicts.len() == batch.len() => Tried::Answered(verdicts),
        Ok(Ok(verdicts)) => Tried::Broke(format!("{} verdicts on {} messages", verdicts.len(), batch.len())),
        Ok(Err(Unavailable(reason))) => Tried::Unavailable(reason),
        Err(panic) => Tried::Broke(format!("its receiver panicked: {}", panic_message(&*panic))),
    }
}

struct Pauses(Duration);

impl Pauses {
    async fn wait(&mut self, stop: &mut (impl Future<Output = ()> + Unpin)) -> Option<()> {
        let pause = self.0;
        self.0 = LONGEST_PAUSE.min(pause * 2);
        tokio::select! {
            () = stop => None,
            () = sleep(pause) => Some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Encoded;
    use async_trait::async_trait;
    use std::sync::Mutex;

    /// Notes how many messages come at a time.
    #[derive(Default)]
    struct Counter(Mutex<Vec<usize>>);

    #[async_trait]
    impl Receiver for Counter {
        async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
            self.0.lock().unwrap().push(batch.len());
            Ok(batch.iter().map(|message| Verdict::DeadLetter(message.key.clone())).collect())
        }
    }

    #[tokio::test]
    async fn a_heavy_batch_comes_in_portions_and_each_message_has_its_verdict() {
        let (counter, heavy) = (Counter::default(), Encoded::of(&"x".repeat(PORTION / 2)).unwrap());
        let batch: Vec<Message> = (0..5).map(|n| Message::event("test", "test.v1", n.to_string(), &heavy)).collect();
        let verdicts = deliver(&counter, &batch, std::future::pending()).await.unwrap();
        assert_eq!(verdicts, batch.iter().map(|message| Verdict::DeadLetter(message.key.clone())).collect::<Vec<_>>());
        assert_eq!(*counter.0.lock().unwrap(), [2, 2, 1]);
    }
}
