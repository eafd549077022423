//! A broker in this process: what it is given arrives at once, a part at a time, and it answers a little later.

use crate::drill::Tally;
use async_trait::async_trait;
use saga_core::transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// So much of a call arrives at a time.
const PART: usize = 100;

pub(crate) struct Recorder {
    pub(crate) tally: Arc<Tally>,
    /// How long each part takes, and the answer: a relay may be killed in between. Zero for none.
    pub(crate) pause: Duration,
}

impl Recorder {
    async fn pause(&self) {
        if !self.pause.is_zero() {
            sleep(self.pause).await;
        }
    }
}

#[async_trait]
impl Transport for Recorder {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        for part in batch.chunks(PART) {
            self.pause().await;
            part.iter().for_each(|outgoing| self.tally.heard(&outgoing.message));
        }
        self.pause().await;
        vec![Ok(()); batch.len()]
    }

    async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
        Err(TransportError("the tally hears everything without".into()))
    }

    fn max_message_bytes(&self) -> usize {
        1_000_000
    }
}
