//! A conformance suite for implementers of [`Transport`].
//!
//! Each [`Case`] is one promise of [the contract](crate::transport), named as a sentence, and is tried on topics of its own. [`conformance`] tries them all and panics with a report of every
//! promise that was broken:
//!
//! ```
//! use async_trait::async_trait;
//! use saga_core::{testing::transport, transport::{LocalTransport, Transport}};
//! use std::sync::Arc;
//!
//! struct Local(LocalTransport);
//!
//! #[async_trait]
//! impl transport::Broker for Local {
//!     async fn node(&self) -> Arc<dyn Transport> {
//!         Arc::new(self.0.clone())
//!     }
//!     async fn topic(&self, _name: &str) {} // they come into being by themselves
//! }
//!
//! # #[tokio::main]
//! # async fn main() {
//! transport::conformance(&Local(LocalTransport::default())).await;
//! # }
//! ```
//!
//! # What the suite expects of its surroundings
//!
//! - A tokio runtime; one with several threads finds more.
//! - All cases share a broker, each with topics of its own. [Six](AT_ONCE) are under way at a time.
//! - What is promised to happen is waited for, for as long as [`Broker::patience`] says. That something does *not* happen is only concluded from something behind it that does.
//!
//! - What a [`Broker`] cannot do ([`rubbish`](Broker::rubbish), [`cut_off`](Broker::cut_off)) leaves out the cases that need it; the [`Report`] names them. Those that
//!   cut it off run at the end, one by one.
//!
//! # What it does not show
//!
//! - That messages survive the death of the broker: kill yours for that.
//! - How much a consumer keeps in memory that its receiver has not taken yet: a bound cannot be seen from outside.
//! - That a dead letter is safe before its message counts as dealt with, and that a record that is no message is found among the dead letters: nothing but
//!   your broker's own tools can see a record that is no message, or make it refuse a dead letter.

/// Makes a broken promise of a condition that does not hold.
macro_rules! promise {
    ($holds:expr, $($seen:tt)+) => {
        if !$holds {
            return Err(format!($($seen)+).into());
        }
    };
}

mod handing_over;
mod publishing;
mod receiving;
mod rejecting;
mod trial;

use crate::transport::Transport;
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::timeout;
use trial::World;

/// How many cases [`conformance`] has under way at a time.
pub const AT_ONCE: usize = 6;

/// The broker that the suite works on.
#[async_trait]
pub trait Broker: Send + Sync {
    /// The transport of a node. Each call is for another one.
    async fn node(&self) -> Arc<dyn Transport>;

    /// Makes a topic of several partitions, together with `<name>.dlt` for its dead letters.
    async fn topic(&self, name: &str);

    /// Writes a record to a topic that is no message, and says whether it could.
    async fn rubbish(&self, _topic: &str) -> bool {
        false
    }

    /// Makes the broker unavailable to all nodes, and says whether it could.
    async fn cut_off(&self) -> bool {
        false
    }

    /// Makes it available again.
    async fn bring_back(&self) {}

    /// How long to wait for what is promised. Defaults to a minute.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// One promise.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    /// It cuts the broker off, and so disturbs whatever runs beside it.
    alone: bool,
    check: for<'w> fn(&'w World<'w>) -> BoxFuture<'w, Kept>,
}

/// What became of a promise that was not seen broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// It was kept.
    Kept,
    /// It was not tried: the [`Broker`] cannot do what that takes.
    LeftOut,
}

/// What [`conformance`] has tried, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The promises that were kept.
    pub kept: Vec<&'static str>,
    /// Those that the [`Broker`] gave no means to try.
    pub left_out: Vec<&'static str>,
}

/// Whether a promise was kept.
type Kept = Result<(), Unkept>;

/// Why a promise does not count as kept.
enum Unkept {
    /// What was seen instead.
    Broken(String),
    /// The broker cannot do what the case needs.
    LeftOut,
}

impl From<String> for Unkept {
    fn from(seen: String) -> Self {
        Self::Broken(seen)
    }
}

impl Case {
    /// The promise, as a sentence.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Tries it.
    ///
    /// # Errors
    /// What was seen instead.
    pub async fn try_on(&self, broker: &dyn Broker) -> Result<Tried, String> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let world = World { broker, topic: format!("t-{id}"), group: format!("g-{id}") };
        broker.topic(&world.topic).await;
        let tried = AssertUnwindSafe((self.check)(&world)).catch_unwind();
        let tried = timeout(broker.patience() * 3, tried).await;
        if self.alone {
            // However it ended: the next case needs the broker.
            broker.bring_back().await;
        }
        match tried {
            Ok(Ok(Ok(()))) => Ok(Tried::Kept),
            Ok(Ok(Err(Unkept::LeftOut))) => Ok(Tried::LeftOut),
            Ok(Ok(Err(Unkept::Broken(seen)))) => Err(seen),
            Ok(Err(panic)) => Err(format!("it panicked: {}", crate::error::panic_message(&*panic))),
            Err(_) => Err("it did not come to an end".into()),
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Tries every case, and says which promises were kept.
///
/// # Panics
/// When a promise is broken, with a report of all that were.
pub async fn conformance(broker: &dyn Broker) -> Report {
    let (alone, together): (Vec<Case>, Vec<Case>) = cases().into_iter().partition(|case| case.alone);
    let try_on = |case: Case| async move { (case, case.try_on(broker).await) };
    let mut tried: Vec<_> = stream::iter(together).map(try_on).buffer_unordered(AT_ONCE).collect().await;
    tried.extend(stream::iter(alone).then(try_on).collect::<Vec<_>>().await);
    let (count, mut report, mut broken) = (tried.len(), Report::default(), vec![]);
    for (case, tried) in tried {
        match tried {
            Ok(Tried::Kept) => report.kept.push(case.name),
            Ok(Tried::LeftOut) => report.left_out.push(case.name),
            Err(seen) => broken.push(format!("- {case:?}\n    {seen}")),
        }
    }
    assert!(broken.is_empty(), "the transport broke {} of {count} promises:\n{}", broken.len(), broken.join("\n"));
    report
}

/// The case of that name.
pub fn case(name: &str) -> Option<Case> {
    cases().into_iter().find(|case| case.name == name)
}

macro_rules! cases {
    (together { $($topic:ident { $($name:ident)+ })+ } alone { $($alone_topic:ident { $($alone:ident)+ })+ }) => {
        /// All cases.
        pub fn cases() -> Vec<Case> {
            vec![
                $($(Case { name: stringify!($name), alone: false, check: |world| Box::pin($topic::$name(world)) },)+)+
                $($(Case { name: stringify!($alone), alone: true, check: |world| Box::pin($alone_topic::$alone(world)) },)+)+
            ]
        }
    };
}

cases! {
    together {
        publishing {
            what_is_accepted_is_delivered
            a_message_arrives_as_it_was_sent
            messages_of_a_key_keep_their_order_within_a_call
            messages_of_a_key_keep_their_order_from_call_to_call
            calls_at_once_keep_the_order_of_each
            what_is_too_large_is_refused_and_its_neighbours_are_not
            what_was_published_before_the_first_consumer_came_is_delivered
            each_group_gets_everything
            a_subscription_to_a_topic_that_is_not_there_fails_or_makes_it
        }
        receiving {
            a_batch_is_bounded_and_comes_after_the_one_before
            a_batch_is_of_one_partition_and_in_its_order
            a_partition_that_stands_still_holds_up_no_other
            an_unavailable_receiver_gets_the_same_messages_again
            an_unavailable_receiver_holds_up_no_other_partition
            a_receiver_that_panics_gets_the_same_messages_again
            a_wrong_number_of_verdicts_loses_nothing
        }
        rejecting {
            the_message_that_a_receiver_always_panics_on_is_a_dead_letter
            the_message_that_never_gets_its_verdict_is_a_dead_letter
            a_rejected_message_is_found_among_the_dead_letters
            what_was_rejected_does_not_come_again
            a_record_that_is_no_message_holds_up_nothing
        }
        handing_over {
            a_consumer_that_stops_ends_its_batch_and_keeps_its_progress
            a_consumer_whose_receiver_is_unavailable_can_stop
            what_is_under_way_ends_before_another_consumer_goes_on
            a_consumer_that_dies_in_a_batch_loses_nothing
            a_running_consumer_takes_over_from_one_that_dies
            consumers_that_come_and_go_share_without_loss_or_overlap
        }
    }
    alone {
        publishing {
            an_outage_loses_nothing_and_keeps_the_order
        }
    }
}
