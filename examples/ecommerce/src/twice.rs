//! A charge that comes a second time, so that the payment service answers twice: over Kafka, which delivers at least once, the same command again; over HTTP the same
//! request again, as from a caller who did not hear the answer.

use crate::{
    Result,
    broker::Broker,
    order::{self, Way},
    payment::ChargePayment,
};
use async_trait::async_trait;
use saga_core::{
    Encoded, SagaId,
    message::{Answer, CommandAttributes, CommandId, Message, Op, Reply},
    participant::Command,
    transport::{Consumer, Outgoing, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_kafka::KafkaTransport;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::mpsc;

const STEP: &str = "charge-payment";

/// Hears what the payment service answers.
pub enum Repeats {
    OverHttp { payment: String },
    OverKafka { kafka: KafkaTransport, replies: mpsc::UnboundedReceiver<Reply>, consumer: Box<dyn Consumer> },
}

impl Repeats {
    pub async fn listen(way: Way, broker: &Broker, payment: &str) -> Result<Self> {
        if let Way::Http = way {
            return Ok(Self::OverHttp { payment: payment.into() });
        }
        let kafka = broker.connection().connect().await?;
        let (heard, replies) = mpsc::unbounded_channel();
        let subscription = Subscription { group: "tour".into(), topics: vec![replies_to()], batch: 100 };
        let consumer = kafka.subscribe(subscription, Arc::new(Heard(heard))).await?;
        Ok(Self::OverKafka { kafka, replies, consumer })
    }

    /// Sends what an order was charged with once more, and returns what was answered to that.
    pub async fn repeat(&mut self, order: SagaId, charge: &ChargePayment) -> Result<Value> {
        let id = CommandId { saga: order, step: STEP.into(), generation: 0 };
        match self {
            Self::OverHttp { payment } => {
                let request = reqwest::Client::new().post(format!("{payment}/payments"));
                let answer = request.header("Idempotency-Key", id.key()).json(charge).send().await?;
                Ok(answer.error_for_status()?.json().await?)
            }
            Self::OverKafka { kafka, replies, .. } => {
                let first = answer_to(&id, replies).await?;
                let again = CommandAttributes { id: id.clone(), op: Op::Do, attempt: 1, reply_to: replies_to() };
                let message = again.message(order::NAME, ChargePayment::TYPE, &Encoded::of(charge)?);
                let outgoing = [Outgoing { topic: ChargePayment::TOPIC.into(), message }];
                kafka.publish(&outgoing).await.into_iter().collect::<Result<Vec<_>, _>>()?;
                match answer_to(&id, replies).await? {
                    Answer::Success(answer) if first == Answer::Success(answer.clone()) => Ok(answer.decode()?),
                    second => Err(format!("the payment service said {first:?}, and then {second:?}").into()),
                }
            }
        }
    }

    pub async fn stop(self) {
        if let Self::OverKafka { consumer, .. } = self {
            consumer.stop().await;
        }
    }
}

fn replies_to() -> String {
    format!("{}.replies", order::NAME)
}

async fn answer_to(id: &CommandId, replies: &mut mpsc::UnboundedReceiver<Reply>) -> Result<Answer> {
    while let Some(reply) = replies.recv().await {
        if reply.id == *id {
            return Ok(reply.answer);
        }
    }
    Err("nobody listens to replies any more".into())
}

struct Heard(mpsc::UnboundedSender<Reply>);

#[async_trait]
impl Receiver for Heard {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        for reply in batch.iter().filter_map(|message| Reply::of(message).ok()) {
            // Nobody wants to know after the scene.
            let _ = self.0.send(reply);
        }
        Ok(vec![Verdict::Done; batch.len()])
    }
}
