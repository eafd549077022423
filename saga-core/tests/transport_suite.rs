//! The suite for transports notices when a promise is broken: each of its cases finds a fault that was put in for it, and nothing on a sound transport.
#![cfg(feature = "testing")]

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use saga_core::{
    Encoded,
    message::Message,
    testing::transport::{self, Broker},
    transport::{
        Consumer, LocalTransport, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError,
        Unavailable, Verdict,
    },
};
use std::{
    collections::BTreeSet,
    mem::ManuallyDrop,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{sync::Mutex as AsyncMutex, time::sleep};

/// A way to break a promise.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    LosesTheLastOfACall,
    TurnsACallRound,
    HoldsEveryOtherCallBack,
    TurnsCallsRoundThatMeet,
    LosesHeaders,
    AcceptsWhatIsTooLarge,
    RefusesTheNeighboursToo,
    StartsAtTheEnd,
    SharesGroups,
    PretendsToSubscribe,
    GivesLargeBatches,
    HandlesTwoBatchesAtOnce,
    MixesPartitions,
    HandlesOneBatchAtATime,
    PassesOverWhatIsUnavailable,
    MakesNoPause,
    WaitsWithAllPartitions,
    ForgetsAPanic,
    BuriesTheWholeBatch,
    TakesAnyNumberOfVerdicts,
    SwallowsDeadLetters,
    GivesNoReason,
    ForgetsItsProgress,
    IsHeldUpByRubbish,
    StopsInTheMiddle,
    AnswersBeforeItHandles,
    HoldsOnWhenItDies,
    GivesAwayWhatIsUnderWay,
    AcceptsWhileItIsAway,
    RefusesWhileItIsAway,
    KeepsTheSecondHalfOnly,
}

use Fault::*;

/// Each fault, and the case that notices it.
const FAULTS: &[(Fault, &str)] = &[
    (LosesTheLastOfACall, "what_is_accepted_is_delivered"),
    (LosesHeaders, "a_message_arrives_as_it_was_sent"),
    (TurnsACallRound, "messages_of_a_key_keep_their_order_within_a_call"),
    (HoldsEveryOtherCallBack, "messages_of_a_key_keep_their_order_from_call_to_call"),
    (TurnsCallsRoundThatMeet, "calls_at_once_keep_the_order_of_each"),
    (AcceptsWhatIsTooLarge, "what_is_too_large_is_refused_and_its_neighbours_are_not"),
    (RefusesTheNeighboursToo, "what_is_too_large_is_refused_and_its_neighbours_are_not"),
    (StartsAtTheEnd, "what_was_published_before_the_first_consumer_came_is_delivered"),
    (SharesGroups, "each_group_gets_everything"),
    (PretendsToSubscribe, "a_subscription_to_a_topic_that_is_not_there_fails_or_makes_it"),
    (GivesLargeBatches, "a_batch_is_bounded_and_comes_after_the_one_before"),
    (HandlesTwoBatchesAtOnce, "a_batch_is_bounded_and_comes_after_the_one_before"),
    (MixesPartitions, "a_batch_is_of_one_partition_and_in_its_order"),
    (HandlesOneBatchAtATime, "a_partition_that_stands_still_holds_up_no_other"),
    (PassesOverWhatIsUnavailable, "an_unavailable_receiver_gets_the_same_messages_again"),
    (MakesNoPause, "an_unavailable_receiver_gets_the_same_messages_again"),
    (WaitsWithAllPartitions, "an_unavailable_receiver_holds_up_no_other_partition"),
    (ForgetsAPanic, "a_receiver_that_panics_gets_the_same_messages_again"),
    (TakesAnyNumberOfVerdicts, "a_wrong_number_of_verdicts_loses_nothing"),
    (TakesAnyNumberOfVerdicts, "the_message_that_never_gets_its_verdict_is_a_dead_letter"),
    (BuriesTheWholeBatch, "the_message_that_a_receiver_always_panics_on_is_a_dead_letter"),
    (GivesNoReason, "the_message_that_a_receiver_always_panics_on_is_a_dead_letter"),
    (SwallowsDeadLetters, "a_rejected_message_is_found_among_the_dead_letters"),
    (GivesNoReason, "a_rejected_message_is_found_among_the_dead_letters"),
    (ForgetsItsProgress, "what_was_rejected_does_not_come_again"),
    (IsHeldUpByRubbish, "a_record_that_is_no_message_holds_up_nothing"),
    (StopsInTheMiddle, "a_consumer_that_stops_ends_its_batch_and_keeps_its_progress"),
    (ForgetsItsProgress, "a_consumer_that_stops_ends_its_batch_and_keeps_its_progress"),
    (WaitsWithAllPartitions, "a_consumer_whose_receiver_is_unavailable_can_stop"),
    (GivesAwayWhatIsUnderWay, "what_is_under_way_ends_before_another_consumer_goes_on"),
    (AnswersBeforeItHandles, "a_consumer_that_dies_in_a_batch_loses_nothing"),
    (HoldsOnWhenItDies, "a_running_consumer_takes_over_from_one_that_dies"),
    (AnswersBeforeItHandles, "consumers_that_come_and_go_share_without_loss_or_overlap"),
    (AcceptsWhileItIsAway, "an_outage_loses_nothing_and_keeps_the_order"),
    (RefusesWhileItIsAway, "an_outage_loses_nothing_and_keeps_the_order"),
    (KeepsTheSecondHalfOnly, "an_outage_loses_nothing_and_keeps_the_order"),
];

#[tokio::test(start_paused = true)]
async fn the_suite_notices_every_fault() {
    let mut missed = vec![];
    for &(fault, name) in FAULTS {
        let case = transport::case(name).unwrap();
        match case.try_on(&Wrapped::new(Some(fault))).await {
            Err(seen) => println!("{fault:?}: {seen}"),
            Ok(tried) => missed.push(format!("{name} did not notice {fault:?}: {tried:?}")),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn every_case_has_a_fault_to_notice() {
    let with_faults: BTreeSet<&str> = FAULTS.iter().map(|(_, name)| *name).collect();
    let all: BTreeSet<&str> = transport::cases().iter().map(transport::Case::name).collect();
    assert_eq!(with_faults, all);
}

#[tokio::test(start_paused = true)]
async fn the_suite_finds_nothing_on_a_sound_transport_and_leaves_nothing_out() {
    let report = transport::conformance(&Wrapped::new(None)).await;
    assert_eq!(report.left_out, Vec::<&str>::new());
    assert_eq!(report.kept.len(), transport::cases().len());
}

/// A broker that can be away and has records that are no messages, around the local one; with a fault or without.
struct Wrapped(Arc<Shared>);

#[derive(Default)]
struct Shared {
    local: LocalTransport,
    fault: Option<Fault>,
    away: AtomicBool,
    under_way: AtomicUsize,
    held_back: Mutex<Option<Vec<Outgoing>>>,
    last: Mutex<Option<Message>>,
    turn: AsyncMutex<()>,
}

impl Wrapped {
    fn new(fault: Option<Fault>) -> Self {
        Self(Arc::new(Shared { fault, ..Shared::default() }))
    }
}

const RUBBISH: &str = "rubbish";

#[async_trait]
impl Broker for Wrapped {
    async fn node(&self) -> Arc<dyn Transport> {
        Arc::new(Node(self.0.clone()))
    }

    async fn topic(&self, _: &str) {}

    async fn rubbish(&self, topic: &str) -> bool {
        let record = |n: usize| Message::event("nobody", RUBBISH, format!("k{n}"), &Encoded::null());
        let records = (0..20).map(|n| Outgoing { topic: topic.into(), message: record(n) });
        self.0.local.publish(&records.collect::<Vec<_>>()).await;
        true
    }

    async fn cut_off(&self) -> bool {
        self.0.away.store(true, SeqCst);
        true
    }

    async fn bring_back(&self) {
        self.0.away.store(false, SeqCst);
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

struct Node(Arc<Shared>);

impl Shared {
    /// What an outage leaves of a call: a part of it may be there, but nothing behind what is not.
    async fn publish_while_away(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let (first, second) = batch.split_at(batch.len() / 2);
        let kept = match self.fault {
            Some(AcceptsWhileItIsAway) => return vec![Ok(()); batch.len()],
            Some(RefusesWhileItIsAway) => return vec![Err(PublishError::Refused("it is away".into())); batch.len()],
            Some(KeepsTheSecondHalfOnly) => second,
            _ => first,
        };
        self.local.publish(kept).await;
        vec![Err(PublishError::Unavailable("it is away".into())); batch.len()]
    }
}

#[async_trait]
impl Transport for Node {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let shared = &self.0;
        if shared.away.load(SeqCst) {
            return shared.publish_while_away(batch).await;
        }
        let (mut batch, count) = (batch.to_vec(), batch.len());
        match shared.fault {
            Some(LosesTheLastOfACall) => drop(batch.pop()),
            Some(TurnsACallRound) => batch.reverse(),
            Some(HoldsEveryOtherCallBack) => {
                let held_back = shared.held_back.lock().unwrap().take();
                match held_back {
                    Some(earlier) => batch.extend(earlier),
                    None => *shared.held_back.lock().unwrap() = Some(std::mem::take(&mut batch)),
                }
            }
            Some(TurnsCallsRoundThatMeet) => {
                shared.under_way.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                if shared.under_way.fetch_sub(1, SeqCst) > 1 {
                    batch.reverse();
                }
            }
            Some(LosesHeaders) => batch.iter_mut().for_each(|outgoing| outgoing.message.headers.clear()),
            Some(AcceptsWhatIsTooLarge) => {
                shared.local.publish(&batch).await;
                return vec![Ok(()); count];
            }
            Some(RefusesTheNeighboursToo) => {
                let answers = shared.local.publish(&batch).await;
                return match answers.into_iter().find(Result::is_err) {
                    Some(error) => vec![error; count],
                    None => vec![Ok(()); count],
                };
            }
            _ => {}
        }
        let mut answers = shared.local.publish(&batch).await;
        answers.resize(count, Ok(()));
        answers
    }

    async fn subscribe(
        &self,
        mut subscription: Subscription,
        receiver: Arc<dyn Receiver>,
    ) -> Result<Box<dyn Consumer>, TransportError> {
        let shared = self.0.clone();
        match shared.fault {
            Some(GivesLargeBatches) => subscription.batch = 1000,
            Some(SharesGroups) => subscription.group = "everybody".into(),
            Some(ForgetsItsProgress) => subscription.group = saga_core::SagaId::generate().to_string(),
            Some(PretendsToSubscribe) => return Ok(Box::new(Nothing)),
            _ => {}
        }
        let wrapped = Wrapper { shared: shared.clone(), receiver, since: Utc::now() };
        let consumer = shared.local.subscribe(subscription, Arc::new(wrapped)).await?;
        Ok(match shared.fault {
            Some(StopsInTheMiddle | GivesAwayWhatIsUnderWay) => Box::new(Hasty(consumer)),
            Some(HoldsOnWhenItDies) => Box::new(Immortal(ManuallyDrop::new(consumer))),
            _ => consumer,
        })
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        self.0.local.max_message_bytes()
    }
}

struct Nothing;

#[async_trait]
impl Consumer for Nothing {
    async fn stop(self: Box<Self>) {}
}

struct Hasty(Box<dyn Consumer>);

#[async_trait]
impl Consumer for Hasty {
    async fn stop(self: Box<Self>) {
        drop(self.0);
    }
}

struct Immortal(ManuallyDrop<Box<dyn Consumer>>);

#[async_trait]
impl Consumer for Immortal {
    async fn stop(self: Box<Self>) {
        ManuallyDrop::into_inner(self.0).stop().await;
    }
}

struct Wrapper {
    shared: Arc<Shared>,
    receiver: Arc<dyn Receiver>,
    since: DateTime<Utc>,
}

impl Wrapper {
    /// In a task of its own, which outlives whoever waits for it.
    fn apart(&self, batch: &[Message]) -> tokio::task::JoinHandle<Result<Vec<Verdict>, Unavailable>> {
        let (receiver, copy) = (self.receiver.clone(), batch.to_vec());
        tokio::spawn(async move { receiver.receive(&copy).await })
    }

    async fn give(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let (receiver, done) = (&self.receiver, vec![Verdict::Done; batch.len()]);
        match self.shared.fault {
            Some(HandlesTwoBatchesAtOnce) => {
                self.apart(batch);
                receiver.receive(batch).await
            }
            Some(AnswersBeforeItHandles) => {
                self.apart(batch);
                Ok(done)
            }
            Some(GivesAwayWhatIsUnderWay) => self.apart(batch).await.unwrap(),
            Some(HandlesOneBatchAtATime) => {
                let _turn = self.shared.turn.lock().await;
                receiver.receive(batch).await
            }
            Some(WaitsWithAllPartitions) => {
                let _turn = self.shared.turn.lock().await;
                loop {
                    match receiver.receive(batch).await {
                        Err(_) => sleep(Duration::from_millis(100)).await,
                        answered => return answered,
                    }
                }
            }
            Some(MixesPartitions) => {
                let last = self.shared.last.lock().unwrap().replace(batch[0].clone());
                let with_another: Vec<Message> = batch.iter().cloned().chain(last).collect();
                let mut verdicts = receiver.receive(&with_another).await?;
                verdicts.truncate(batch.len());
                Ok(verdicts)
            }
            Some(PassesOverWhatIsUnavailable) => Ok(receiver.receive(batch).await.unwrap_or(done)),
            Some(MakesNoPause) => loop {
                if let Ok(verdicts) = receiver.receive(batch).await {
                    return Ok(verdicts);
                }
            },
            Some(SwallowsDeadLetters) => receiver.receive(batch).await.map(|_| done),
            Some(GivesNoReason) => {
                let verdicts = match self.apart(batch).await {
                    Ok(answered) => answered?,
                    // The culprit alone, as it should be.
                    Err(_) if batch.len() == 1 => vec![Verdict::DeadLetter(String::new())],
                    Err(_) => panic!("on behalf of the receiver"),
                };
                let without = |verdict| match verdict {
                    Verdict::DeadLetter(_) => Verdict::DeadLetter(String::new()),
                    Verdict::Done => Verdict::Done,
                };
                Ok(verdicts.into_iter().map(without).collect())
            }
            Some(TakesAnyNumberOfVerdicts) => {
                let mut verdicts = receiver.receive(batch).await?;
                if verdicts.len() != batch.len() {
                    verdicts.clear();
                }
                verdicts.resize(batch.len(), Verdict::Done);
                Ok(verdicts)
            }
            Some(ForgetsAPanic) => self.apart(batch).await.unwrap_or(Ok(done)),
            Some(BuriesTheWholeBatch) => {
                let all = vec![Verdict::DeadLetter("a panic: by the suite, on purpose".into()); batch.len()];
                self.apart(batch).await.unwrap_or(Ok(all))
            }
            _ => receiver.receive(batch).await,
        }
    }

    fn is_passed_over(&self, message: &Message) -> bool {
        self.shared.fault == Some(StartsAtTheEnd) && message.time < self.since
    }
}

#[async_trait]
impl Receiver for Wrapper {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        let is_rubbish = |message: &Message| message.kind == RUBBISH;
        if self.shared.fault == Some(IsHeldUpByRubbish) && batch.iter().any(is_rubbish) {
            return Err(Unavailable("what is this?".into()));
        }
        let is_given = |message: &Message| !is_rubbish(message) && !self.is_passed_over(message);
        let given: Vec<Message> = batch.iter().filter(|message| is_given(message)).cloned().collect();
        if given.len() == batch.len() {
            return self.give(batch).await;
        }
        let mut verdicts = if given.is_empty() { vec![] } else { self.give(&given).await? }.into_iter();
        let verdict = |message: &Message| match (is_given(message), is_rubbish(message)) {
            (true, _) => verdicts.next(),
            (false, true) => Some(Verdict::DeadLetter("it is no message".into())),
            (false, false) => Some(Verdict::Done),
        };
        Ok(batch.iter().map_while(verdict).collect())
    }
}
