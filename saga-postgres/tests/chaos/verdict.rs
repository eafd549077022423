//! What the ledger and the journals say, laid side by side.

use super::purchase::{EFFECTS, Fate, Order, Purchase};
use saga_core::{
    Definition, Encoded,
    definition::{Graph, StepIndex},
    machine::{Event, State, Status, Step},
};
use sqlx::{PgPool, Row, postgres::PgRow};
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

/// A saga as it ended.
pub(crate) struct Ended {
    pub(crate) id: Uuid,
    pub(crate) order: Order,
    pub(crate) status: Status,
    pub(crate) events: Vec<Event>,
    /// What it returned, if it completed.
    pub(crate) receipt: Option<Encoded>,
    closed: HashMap<Number, Closing>,
}

/// The number of an attempt: the step, whether it is the undo, and the count.
type Number = (StepIndex, bool, u32);

/// What the journal says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Closing {
    /// It was the last one.
    Ended,
    /// Another one followed, because of what this one said.
    Retried,
    /// Another one followed, because the worker had lost the saga.
    Lost,
    /// The saga had turned back, and its outcome was of no interest.
    Moot,
}

/// An attempt as the ledger has it.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) key: String,
    pub(crate) saga: Uuid,
    pub(crate) step: String,
    pub(crate) undo: bool,
    pub(crate) number: i32,
    pub(crate) payload: String,
    pub(crate) pid: i32,
    pub(crate) started: i64,
    pub(crate) ended: Option<i64>,
    pub(crate) refused: Option<bool>,
}

impl From<&PgRow> for Attempt {
    fn from(row: &PgRow) -> Self {
        Self {
            key: row.get("key"),
            saga: row.get("saga"),
            step: row.get("step"),
            undo: row.get("undo"),
            number: row.get("number"),
            payload: row.get("payload"),
            pid: row.get("pid"),
            started: row.get("started"),
            ended: row.get("ended"),
            refused: row.get("refused"),
        }
    }
}

pub(crate) struct Verdict {
    pub(crate) sagas: HashMap<Uuid, Ended>,
    pub(crate) attempts: Vec<Attempt>,
    effects: Vec<(String, i32, bool)>,
}

impl Verdict {
    /// Reads everything, and checks that each journal is whole.
    pub(crate) async fn read(pool: &PgPool) -> Self {
        let graph = Definition::<Purchase>::build().unwrap();
        let graph = graph.graph();
        let sql = "SELECT saga_id, seq, entry FROM saga.saga_journal ORDER BY saga_id, seq";
        let mut journals: HashMap<Uuid, Vec<Event>> = HashMap::new();
        let mut last: HashMap<Uuid, i32> = HashMap::new();
        for (saga, seq, entry) in sqlx::query_as::<_, (Uuid, i32, Vec<u8>)>(sql).fetch_all(pool).await.unwrap() {
            let before = last.insert(saga, seq).unwrap_or(0);
            assert_eq!(seq, before + 1, "the journal of {saga} has a gap");
            let events: Vec<Event> = serde_json::from_slice(&entry).unwrap();
            journals.entry(saga).or_default().extend(events);
        }
        let sql = "SELECT id, status, input, owner IS NULL FROM saga.saga";
        let rows = sqlx::query_as::<_, (Uuid, i16, Vec<u8>, bool)>(sql).fetch_all(pool).await.unwrap();
        let saga = |(id, status, input, unowned): (Uuid, i16, Vec<u8>, bool)| {
            let events = journals.remove(&id).unwrap_or_default();
            let ended = Ended::new(graph, id, serde_json::from_slice(&input).unwrap(), events);
            assert_eq!(ended.status as i16, status, "the row of {id} says something else than its journal");
            assert!(unowned, "{id} has ended and is owned");
            (id, ended)
        };
        let sagas = rows.into_iter().map(saga).collect();
        assert!(journals.is_empty(), "there are journals without a saga");
        let attempts = sqlx::query("SELECT * FROM ledger.attempt ORDER BY id").fetch_all(pool).await.unwrap();
        let attempts = attempts.iter().map(Attempt::from).collect();
        let effects = sqlx::query_as("SELECT key, times, undone FROM ledger.effect").fetch_all(pool).await.unwrap();
        Self { sagas, attempts, effects }
    }

    /// Each saga ended as its input wants it, and none is parked.
    pub(crate) fn all_ended_as_they_should(&self) {
        for saga in self.sagas.values() {
            let right = match saga.order.fate {
                Fate::Completes => saga.status == Status::Completed,
                Fate::IsDeclined | Fate::LosesAnswers => saga.status == Status::RolledBack,
                Fate::MayBeCancelled => saga.status.is_final(),
                Fate::IsPoison => saga.status == Status::Parked,
            };
            assert!(right, "{} {:?} is {:?}:\n{:#?}", saga.id, saga.order, saga.status, saga.events);
        }
    }

    /// The law of effects: a completed saga has each of its effects, one that was rolled back has none.
    pub(crate) fn the_ledger_balances(&self) {
        let mut stands: HashMap<Uuid, HashSet<&str>> = HashMap::new();
        for (key, _, undone) in &self.effects {
            let (saga, step) = key.split_once('/').unwrap();
            if !undone {
                stands.entry(saga.parse().unwrap()).or_default().insert(step);
            }
        }
        for saga in self.sagas.values() {
            let stands = stands.remove(&saga.id).unwrap_or_default();
            let right = match saga.status {
                Status::Completed => HashSet::from(EFFECTS),
                Status::RolledBack => HashSet::new(),
                _ => continue,
            };
            assert_eq!(stands, right, "{} {:?} {:?}:\n{:#?}", saga.id, saga.order, saga.status, saga.events);
        }
        assert!(stands.is_empty(), "effects of sagas that do not exist: {stands:?}");
    }

    /// How many times an effect was asked for that stood already.
    pub(crate) fn repeated_effects(&self) -> i32 {
        self.effects.iter().map(|(_, times, _)| (times - 1).max(0)).sum()
    }

    pub(crate) fn no_key_has_two_payloads(&self) -> usize {
        let mut payloads: HashMap<&str, &str> = HashMap::new();
        for Attempt { key, payload, .. } in &self.attempts {
            let first = payloads.entry(key).or_insert(payload);
            assert_eq!(first, payload, "{key} was attempted with two payloads");
        }
        payloads.len()
    }

    /// No number is given to two attempts: whoever takes over counts on. Otherwise two workers would have believed that the saga is theirs.
    pub(crate) fn no_attempt_has_a_twin(&self) {
        let mut seen: HashMap<(&str, i32), &Attempt> = HashMap::new();
        for attempt in &self.attempts {
            if let Some(twin) = seen.insert((&attempt.key, attempt.number), attempt) {
                let events = &self.sagas[&attempt.saga].events;
                panic!("these are the same attempt:\n{twin:?}\n{attempt:?}\n{events:#?}");
            }
        }
    }

    /// Of an attempt of a saga that has ended.
    pub(crate) fn closing(&self, attempt: &Attempt) -> Closing {
        let saga = &self.sagas[&attempt.saga];
        let number = (graph_position(&attempt.step), attempt.undo, attempt.number.cast_unsigned());
        let closing = saga.closed.get(&number).copied();
        closing.unwrap_or_else(|| panic!("the journal knows nothing of {attempt:?}: {:#?}", saga.events))
    }

    pub(crate) fn count_by_status(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for saga in self.sagas.values() {
            *counts.entry(format!("{:?}", saga.status)).or_default() += 1;
        }
        counts
    }
}

fn graph_position(step: &str) -> StepIndex {
    // In the order of the definition.
    ["quote", "reserve", "authorize", "capture", "deliver"].iter().position(|name| *name == step).unwrap()
}

impl Ended {
    /// Folds the journal, event by event: each changes something, and each step has one result at most.
    fn new(graph: &Graph, id: Uuid, order: Order, events: Vec<Event>) -> Self {
        let mut state = State::new(graph);
        let mut closed = HashMap::new();
        let mut succeeded = HashSet::new();
        for event in &events {
            let before = state.clone();
            state.apply(graph, event);
            let may_be_too_late = matches!(event, Event::CancelRequested { .. } | Event::Refused { .. });
            assert!(state != before || may_be_too_late, "{event:?} means nothing to {id}: {events:#?}");
            if let Event::Succeeded { step, .. } = event {
                assert!(succeeded.insert(*step), "a result of {id} was recorded twice: {events:#?}");
            }
            for step in 0..graph.nodes().len() {
                if let Some(number) = open(&before, step)
                    && open(&state, step) != Some(number)
                {
                    closed.insert(number, closing(event, step));
                }
            }
        }
        let receipt = match (state.status(), &state.steps()[graph_position("capture")]) {
            (Status::Completed, Step::Succeeded(receipt)) => Some(receipt.clone()),
            _ => None,
        };
        Self { id, order, status: state.status(), receipt, closed, events }
    }
}

/// The attempt that a step is at.
fn open(state: &State, step: StepIndex) -> Option<Number> {
    let undo = matches!(state.steps()[step], Step::Undoing { .. });
    state.tries(step).map(|tries| (step, undo, tries.made + 1))
}

fn closing(event: &Event, of: StepIndex) -> Closing {
    match event {
        Event::Lapsed { .. } => Closing::Lost,
        Event::Succeeded { step, .. } | Event::Failed { step, .. } | Event::Compensated { step } if *step == of => {
            Closing::Ended
        }
        Event::Retrying { step, .. } | Event::CompensationRetrying { step, .. } if *step == of => Closing::Retried,
        _ => Closing::Moot,
    }
}
