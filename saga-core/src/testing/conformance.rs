//! A conformance suite for implementers of [`Store`].
//!
//! Each [`Case`] is one promise of [the contract](crate::store), named as a sentence, and is tried on a fresh, empty store of its
//! own. [`store`] tries them all and panics with a report of every promise that was broken:
//!
//! ```
//! use saga_core::{MemoryStore, testing::conformance};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! conformance::store(async || MemoryStore::default()).await;
//! # }
//! ```
//!
//! To find out more about one of them, try it alone:
//!
//! ```
//! # use saga_core::{MemoryStore, testing::conformance};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let fence = conformance::case("append::what_a_former_owner_sends_is_lost").expect("there is such a case");
//! assert_eq!(fence.try_on(MemoryStore::default()).await, Ok(()));
//! # }
//! ```
//!
//! # What the suite expects of its surroundings
//!
//! - A tokio runtime; one with several threads finds more, since some cases race.
//! - A fresh store must be empty, and out of reach of every other one: its own schema, prefix or directory. It is dropped when its case is over. [Eight](AT_ONCE)
//!   cases are under way at a time, each with up to four calls.
//! - A real clock, or tokio's. Leases are some milliseconds long, and what takes time is polled for, at most [a few seconds](PATIENCE): on a
//!   healthy store no case takes longer than two. A slow store passes, a slow machine does not make a store fail.
//! - No faults: [`StoreError::Contention`] and [`Appended::Busy`](crate::store::Appended::Busy) are tried again, as the engine does, but
//!   [`StoreError::Unavailable`] breaks a promise here.
//!
//! # What it does not show
//!
//! That answers are durable: kill your store for that. That an answer was lost is played by calling a second time with the same arguments,
//! which comes to the same for the store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test kit panics when a test fails")]

/// Makes a broken promise of a condition that does not hold.
macro_rules! promise {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::testing::conformance::Broken::new(format!($($why)+)));
        }
    };
}

/// Looks until there is something to be seen, for as long as [`PATIENCE`] lasts.
macro_rules! eventually {
    ($what:expr, $look:expr) => {{
        let mut looks = $crate::testing::conformance::trial::Looks::for_something();
        loop {
            if let Some(seen) = $look {
                break seen;
            }
            looks.pause($what).await?;
        }
    }};
}

mod append;
mod claim;
mod hint;
mod lease;
mod look;
mod mailbox;
mod start;
mod trial;

use crate::store::{Store, StoreError};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use std::{any::Any, fmt, panic::AssertUnwindSafe, panic::Location, time::Duration};
use tokio::time::timeout;
use trial::Trial;

/// How many cases [`store`] has under way at a time.
pub const AT_ONCE: usize = 8;

/// How long a case looks for what is promised to happen, until the promise counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long a case may take at all.
const LONGEST: Duration = Duration::from_secs(120);

/// Tries [every case](store_cases), each on a store that `fresh` makes.
///
/// # Panics
/// When a promise is broken, with a report of all that were.
pub async fn store<S: Store>(fresh: impl AsyncFn() -> S) {
    let fresh = &fresh;
    let verdicts: Vec<(Case, Result<(), Broken>)> = stream::iter(store_cases())
        .map(|case| async move { (case, case.try_on(fresh().await).await) })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let tried = verdicts.len();
    let mut broken: Vec<String> = verdicts
        .into_iter()
        .filter_map(|(case, verdict)| verdict.err().map(|broken| format!("- {case}\n    {broken}")))
        .collect();
    broken.sort_unstable();
    assert!(broken.is_empty(), "the store broke {} of {tried} promises:\n{}", broken.len(), broken.join("\n"));
}

/// All cases for a [`Store`], those of one topic together.
pub fn store_cases() -> impl Iterator<Item = Case> {
    CASES.iter().copied()
}

/// The case of that name.
pub fn case(name: &str) -> Option<Case> {
    store_cases().find(|case| case.name == name)
}

/// One promise of the contract, and how to try it.
#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    play: fn(Trial) -> BoxFuture<'static, Result<(), Broken>>,
}

impl Case {
    /// The promise, as `topic::sentence`.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Tries the case on a fresh, empty store. A store that panics, or hangs, breaks its promise.
    ///
    /// # Errors
    /// What was seen instead of what is promised.
    pub async fn try_on(self, store: impl Store) -> Result<(), Broken> {
        let playing = AssertUnwindSafe((self.play)(Trial::on(store))).catch_unwind();
        match timeout(LONGEST, playing).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(panic)) => Err(Broken::new(format!("it panicked: {}", message_of(&*panic)))),
            Err(_) => Err(Broken::new(format!("it was not done after {LONGEST:?}"))),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// What was seen instead of what is promised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{seen} ({at})")]
pub struct Broken {
    seen: String,
    at: String,
}

impl Broken {
    #[track_caller]
    fn new(seen: impl Into<String>) -> Self {
        Self { seen: seen.into(), at: Location::caller().to_string() }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

macro_rules! cases {
    ($($topic:ident { $($case:ident)+ })+) => {
        const CASES: &[Case] = &[$($(
            Case {
                name: concat!(stringify!($topic), "::", stringify!($case)),
                play: |trial| Box::pin($topic::$case(trial)),
            },
        )+)+];
    };
}

cases! {
    start {
        a_new_saga_runs_with_what_it_was_started_with
        a_repeated_start_is_new_again
        a_repeated_start_changes_nothing_of_a_saga_that_went_on
        a_key_is_taken_once
        a_key_stays_taken_when_its_saga_has_ended
        the_same_key_under_another_name_is_another_key
        keys_are_compared_byte_for_byte
        of_a_key_that_occurs_twice_in_a_batch_one_saga_is_started
        answers_come_in_the_order_of_the_batch
        a_thousand_start_in_one_batch
        an_unowned_saga_is_due_at_once_and_an_owned_one_is_not
        of_many_starts_of_a_key_at_the_same_time_one_is_new
        odd_inputs_survive_byte_for_byte
        a_start_that_is_refused_is_rejected_with_its_whole_batch
        a_saga_started_for_a_worker_that_is_gone_is_swept
    }
    append {
        entries_are_kept_in_order_and_byte_for_byte
        journals_of_many_entries_are_in_order
        a_repeated_append_is_written_once
        a_repeated_append_that_released_is_written_and_the_next_owner_undisturbed
        a_repeated_append_that_ended_the_saga_is_written
        a_batch_of_repeated_and_new_appends_is_written_once
        an_append_that_is_sent_twice_at_the_same_time_is_written_once
        a_place_that_another_worker_filled_is_lost
        a_wrong_epoch_is_lost
        an_append_by_somebody_else_is_lost
        an_append_to_an_unknown_saga_is_lost
        an_append_after_the_release_is_lost
        what_a_worker_sends_under_its_former_claim_is_lost
        what_a_former_owner_sends_is_lost
        an_append_that_races_with_a_takeover_is_written_before_it_or_lost
        status_and_release_take_effect_with_the_entry
        without_an_entry_only_the_row_changes
        a_refused_append_leaves_its_neighbours_written
        a_released_saga_is_claimable_when_it_is_due_and_not_before
        a_saga_that_was_released_for_good_is_not_claimable
        an_ended_saga_is_not_claimable_even_with_mail
    }
    claim {
        no_more_than_the_limit_is_claimed
        a_claim_takes_what_is_ripe_as_it_was_asked_and_nothing_else
        what_has_been_due_longest_is_claimed_first
        only_the_given_definitions_are_claimed
        of_two_claims_at_the_same_time_each_gets_sagas_of_its_own
        the_record_of_a_claim_is_complete
        a_claim_reads_what_comes_after_the_snapshot_or_everything
        a_claim_takes_no_more_than_there_is_room_for_but_one_at_least
        a_claim_leaves_what_lapsed_more_often_than_it_was_asked
        a_snapshot_of_an_append_that_is_refused_is_not_kept
        the_epoch_grows_with_every_claim
        what_is_owned_is_not_claimed_even_by_its_owner
        a_saga_grows_older
        a_saga_is_no_younger_than_its_owner_said_and_what_it_waited
    }
    lease {
        a_worker_that_beats_in_time_lives
        a_lease_lapses_by_itself_and_never_comes_back
        a_beat_revives_nobody_who_was_swept
        a_lapse_is_survived_by_a_worker_that_comes_back
        a_beat_of_nobody_is_false
        a_repeated_join_is_one
        a_sweep_frees_what_lapsed_workers_owned_and_nothing_else
        every_lapse_is_counted_once
        sweeps_at_the_same_time_count_one_lapse
        a_sweep_keeps_to_its_limit
        a_swept_saga_brings_its_journal_and_its_unread_mail
        what_a_worker_owns_can_be_listed
        a_disowned_saga_is_due_at_once_without_a_lapse
        a_disowned_saga_that_its_worker_claims_again_has_another_epoch
        a_disown_that_comes_late_takes_no_saga_from_a_later_claim
        only_what_a_worker_owns_is_disowned
    }
    mailbox {
        mail_is_fetched_by_the_owner_alone_and_in_order
        a_saga_with_much_mail_keeps_no_other_from_its_own
        a_repeated_message_is_accepted_and_delivered_once
        a_message_that_is_posted_twice_at_the_same_time_is_delivered_once
        a_message_is_read_by_the_append_that_folds_it
        a_lost_append_reads_nothing
        mail_makes_an_unowned_saga_claimable
        mail_does_not_steal_an_owned_saga
        mail_that_comes_while_its_saga_is_released_is_found
        mail_to_an_ended_or_unknown_saga_is_refused
        mail_to_an_unknown_saga_leaves_nothing_behind
        odd_messages_survive_byte_for_byte
        a_message_that_is_refused_is_rejected_with_its_whole_batch
    }
    look {
        a_saga_is_found_by_name_and_key
        statuses_come_in_the_order_asked_for
        an_unknown_saga_cannot_be_read
        looking_changes_nothing
        a_record_is_read_as_it_was_at_one_moment
        the_first_fingerprint_of_a_definition_stands
        the_census_tells_the_parked_and_the_oldest_of_each_name
        what_no_living_worker_knows_is_unclaimable
    }
    hint {
        a_hint_reaches_those_who_listen
        a_hint_needs_no_listener
    }
}
