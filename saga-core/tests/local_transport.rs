//! The transport within one process keeps every promise of a transport, and the suite notices when one is broken.
#![cfg(feature = "testing")]

use async_trait::async_trait;
use saga_core::{
    message::Message,
    testing::transport::{self, Broker},
    transport::{
        Consumer, LocalTransport, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError,
        Unavailable, Verdict,
    },
};
use std::{sync::Arc, time::Duration};

struct Local(LocalTransport);

#[async_trait]
impl Broker for Local {
    async fn node(&self) -> Arc<dyn Transport> {
        Arc::new(self.0.clone())
    }
    async fn topic(&self, _: &str) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_local_transport_conforms() {
    transport::conformance(&Local(LocalTransport::default())).await;
}

#[tokio::test(start_paused = true)]
async fn the_local_transport_conforms_in_virtual_time() {
    transport::conformance(&Local(LocalTransport::default())).await;
}

/// A way to break a promise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    LosesTheLastOfACall,
    TurnsACallRound,
    LosesHeaders,
    AcceptsWhatIsTooLarge,
    RefusesTheNeighboursToo,
    PassesOverWhatIsUnavailable,
    SwallowsDeadLetters,
    BuriesTheWholeBatch,
    GivesLargeBatches,
    HandlesTwoBatchesAtOnce,
    StopsInTheMiddle,
    ForgetsAPanic,
    TakesAnyNumberOfVerdicts,
    SharesGroups,
}

use Fault::*;

/// Each fault, and the case that notices it.
const FAULTS: &[(Fault, &str)] = &[
    (LosesTheLastOfACall, "what_is_accepted_is_delivered"),
    (TurnsACallRound, "messages_of_a_key_keep_their_order_within_a_call"),
    (LosesHeaders, "a_message_arrives_as_it_was_sent"),
    (AcceptsWhatIsTooLarge, "what_is_too_large_is_refused_and_its_neighbours_are_not"),
    (RefusesTheNeighboursToo, "what_is_too_large_is_refused_and_its_neighbours_are_not"),
    (PassesOverWhatIsUnavailable, "an_unavailable_receiver_gets_the_same_messages_again"),
    (SwallowsDeadLetters, "a_rejected_message_is_found_among_the_dead_letters"),
    (BuriesTheWholeBatch, "the_message_that_a_receiver_always_panics_on_is_a_dead_letter"),
    (GivesLargeBatches, "a_batch_is_bounded_and_comes_after_the_one_before"),
    (HandlesTwoBatchesAtOnce, "a_batch_is_bounded_and_comes_after_the_one_before"),
    (StopsInTheMiddle, "a_consumer_that_stops_ends_its_batch_and_keeps_its_progress"),
    (ForgetsAPanic, "a_receiver_that_panics_gets_the_same_messages_again"),
    (TakesAnyNumberOfVerdicts, "a_wrong_number_of_verdicts_loses_nothing"),
    (SharesGroups, "each_group_gets_everything"),
];

#[tokio::test(start_paused = true)]
async fn the_suite_notices_every_fault() {
    for &(fault, name) in FAULTS {
        let case = transport::case(name).unwrap();
        let seen = case.try_on(&Faulty(LocalTransport::default(), fault)).await;
        assert!(seen.is_err(), "{name} did not notice {fault:?}");
    }
}

struct Faulty(LocalTransport, Fault);

#[async_trait]
impl Broker for Faulty {
    async fn node(&self) -> Arc<dyn Transport> {
        Arc::new(FaultyTransport(self.0.clone(), self.1))
    }
    async fn topic(&self, _: &str) {}
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

struct FaultyTransport(LocalTransport, Fault);

#[async_trait]
impl Transport for FaultyTransport {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let mut batch = batch.to_vec();
        let count = batch.len();
        match self.1 {
            LosesTheLastOfACall => drop(batch.pop()),
            TurnsACallRound => batch.reverse(),
            LosesHeaders => batch.iter_mut().for_each(|outgoing| outgoing.message.headers.clear()),
            AcceptsWhatIsTooLarge => {
                self.0.publish(&batch).await;
                return vec![Ok(()); count];
            }
            RefusesTheNeighboursToo => {
                let answers = self.0.publish(&batch).await;
                return match answers.into_iter().find(Result::is_err) {
                    Some(error) => vec![error; count],
                    None => vec![Ok(()); count],
                };
            }
            _ => {}
        }
        let mut answers = self.0.publish(&batch).await;
        answers.resize(count, Ok(()));
        answers
    }

    async fn subscribe(
        &self,
        mut subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        match self.1 {
            GivesLargeBatches => subscription.batch = 1000,
            SharesGroups => subscription.group = "everybody".into(),
            _ => {}
        }
        let consumer = self.0.subscribe(subscription, Arc::new(FaultyReceiver(receiver, self.1))).await?;
        Ok(match self.1 {
            StopsInTheMiddle => Box::new(Hasty(consumer)),
            _ => consumer,
        })
    }

    fn max_message_bytes(&self) -> usize {
        self.0.max_message_bytes()
    }
}

struct Hasty(Box<dyn Consumer>);

#[async_trait]
impl Consumer for Hasty {
    async fn stop(self: Box<Self>) {
        drop(self.0);
    }
}

struct FaultyReceiver(Arc<dyn Receiver>, Fault);

#[async_trait]
impl Receiver for FaultyReceiver {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let done = vec![Verdict::Done; batch.len()];
        match self.1 {
            HandlesTwoBatchesAtOnce => {
                let (receiver, copy) = (self.0.clone(), batch.to_vec());
                tokio::spawn(async move { receiver.receive(&copy).await });
                self.0.receive(batch).await
            }
            PassesOverWhatIsUnavailable => Ok(self.0.receive(batch).await.unwrap_or(done)),
            SwallowsDeadLetters => self.0.receive(batch).await.map(|_| done),
            TakesAnyNumberOfVerdicts => {
                let mut verdicts = self.0.receive(batch).await?;
                if verdicts.len() != batch.len() {
                    verdicts.clear();
                }
                verdicts.resize(batch.len(), Verdict::Done);
                Ok(verdicts)
            }
            ForgetsAPanic | BuriesTheWholeBatch => {
                let (receiver, copy) = (self.0.clone(), batch.to_vec());
                match tokio::spawn(async move { receiver.receive(&copy).await }).await {
                    Ok(answer) => answer,
                    Err(_) if self.1 == ForgetsAPanic => Ok(done),
                    Err(_) => Ok(vec![Verdict::DeadLetter("a panic".into()); batch.len()]),
                }
            }
            _ => self.0.receive(batch).await,
        }
    }
}
