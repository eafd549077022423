//! librdkafka's producer, and a thread that hears what becomes of its records.
//!
//! In place of rdkafka's `FutureProducer`: that polls for a tenth of a second at a time, and spins through the last millisecond of each, which is a hundredth of a processor for a producer that
//! has nothing to do.

use crate::{
    metrics::Metrics,
    room::{Place, Room},
    settings::Settings,
};
use rdkafka::{
    ClientContext, Message, Statistics,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{sync::oneshot, time::sleep};

/// How long the thread waits at a time, and so the client lives on at most when it is not wanted any more.
const POLL: Duration = Duration::from_secs(1);

/// How long to wait for room in the client's queue before looking again.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// Where a record is now.
pub(crate) struct Delivered {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// What became of a record.
pub(crate) type Fate = KafkaResult<Delivered>;

/// One record for the broker.
pub(crate) struct Record<'m> {
    pub(crate) topic: &'m str,
    pub(crate) key: Option<&'m [u8]>,
    pub(crate) value: Option<&'m [u8]>,
    pub(crate) headers: OwnedHeaders,
}

/// Why a record was not handed over.
pub(crate) enum NotSent {
    /// As much of its topic waits in the client as may.
    NoRoom,
    Client(KafkaError),
}

struct Context {
    metrics: Arc<Metrics>,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.metrics.producer(&statistics);
    }
}

impl ProducerContext for Context {
    /// Who waits for it, and its place in the queue.
    type DeliveryOpaque = Box<(oneshot::Sender<Fate>, Place)>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, opaque: Self::DeliveryOpaque) {
        let (waiting, _place) = *opaque;
        let delivered = match delivered {
            Ok(record) => Ok(Delivered { partition: record.partition(), offset: record.offset() }),
            Err((error, _)) => Err(error.clone()),
        };
        // Nobody may wait for it any more.
        let _ = waiting.send(delivered);
    }
}

/// When it is dropped, the client ends within a second or two, without anybody waiting for it: until then it may still send what it was given.
pub(crate) struct Producer {
    client: Arc<BaseProducer<Context>>,
    room: Room,
    ended: Arc<AtomicBool>,
}

impl Producer {
    pub(crate) fn new(settings: &Settings, metrics: &Arc<Metrics>) -> KafkaResult<Self> {
        let context = Context { metrics: metrics.clone() };
        let client = Arc::new(BaseProducer::from_config_and_context(&settings.producer(), context)?);
        let ended = Arc::new(AtomicBool::new(false));
        let poll = {
            let (client, ended) = (client.clone(), ended.clone());
            move || {
                while !ended.load(Ordering::Acquire) {
                    client.poll(POLL);
                }
            }
        };
        let thread = thread::Builder::new().name("kafka producer".into()).spawn(poll);
        thread.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        let (records, kibibytes) = settings.queue();
        Ok(Self { client, room: Room::of(records, kibibytes), ended })
    }

    /// Hands a record of so many bytes over, once there is room for it. What becomes of it is told later, unless the
    /// client ends first.
    pub(crate) async fn send(&self, record: Record<'_>, bytes: usize) -> Result<oneshot::Receiver<Fate>, NotSent> {
        let place = self.room.place(record.topic, bytes).await.ok_or(NotSent::NoRoom)?;
        let (waiting, fate) = oneshot::channel();
        let opaque = Box::new((waiting, place));
        let mut next = BaseRecord::<[u8], [u8], _>::with_opaque_to(record.topic, opaque).headers(record.headers);
        (next.key, next.payload) = (record.key, record.value);
        loop {
            match self.client.send(next) {
                Ok(()) => return Ok(fate),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), same)) => next = same,
                Err((error, _)) => return Err(NotSent::Client(error)),
            }
            sleep(QUEUE_FULL).await;
        }
    }

    /// Why the client is broken for good, if it is.
    pub(crate) fn broken(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.client.client().fatal_error()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}
