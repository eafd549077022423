//! Where a look for letters begins.
//!
//! Letters are numbered. A look reads those after the number that was [settled](crate::settled) two seconds before the
//! last look: none of these appears any more, and each was looked at for two seconds at least. Those are for a letter
//! that came while its saga was on its way, from the database to a worker or back: it was passed over then, and is
//! found by the next look. What takes longer than that is found by a full look.

use super::{
    PgStore,
    heads::{Heads, Look, Looks, pause},
    rows::{column, count, mail, unzipped},
};
use crate::{
    error::meaning_of,
    settled::{Settled, Writers},
};
use saga_core::{
    WorkerId,
    store::{DefinitionId, Mail, StoreError},
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// For so long each letter is looked at, at least.
const A_WHILE: Duration = Duration::from_secs(2);
/// So many unread letters are looked at, at a time, for those to sagas that have ended.
const AT_A_TIME: i64 = 5_000;

/// What is known of the letters' numbers.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// For letters to sagas that a worker owns, and to those that it might claim.
    owned: Mutex<Heads<i64>>,
    unowned: Mutex<Heads<i64>>,
    numbers: Mutex<Numbers>,
    dead: Mutex<DeadLetters>,
    /// One at a time: what was seen first is noted first.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Numbers {
    settled: Settled,
    /// It is settled for a while, or longer.
    before: i64,
    /// It is settled since then.
    newer: Option<(i64, Instant)>,
    /// When they are read next.
    next: Option<Instant>,
}

impl Numbers {
    fn saw(&mut self, numbered: i64, writers: &Writers, now: Instant) -> bool {
        let holds = self.settled.saw(numbered, writers);
        if !holds {
            *self = Self { settled: std::mem::take(&mut self.settled), next: self.next, ..Self::default() };
        }
        match self.newer {
            Some((_, since)) if now.duration_since(since) < A_WHILE => {}
            newer => {
                self.before = newer.map_or(0, |(number, _)| number);
                self.newer = Some((self.settled.number(), now));
            }
        }
        holds
    }
}

/// How far the letters to sagas that have ended have been looked for: in the order of the sagas' ids, some at a time,
/// and from the beginning again after a while.
#[derive(Debug, Default)]
struct DeadLetters {
    after: Uuid,
    /// How long it has taken from the beginning.
    took: Duration,
    next: Option<Instant>,
}

impl DeadLetters {
    /// The last one that was looked at, if there may be more; or what went wrong.
    fn looked<E>(&mut self, last: Result<Option<Uuid>, E>, began: Instant, now: Instant) -> Result<(), E> {
        self.took += now.duration_since(began);
        let (after, answer) = match last {
            Ok(Some(last)) => {
                self.after = last;
                return Ok(());
            }
            Ok(None) => (Uuid::nil(), Ok(())),
            Err(error) => (self.after, Err(error)),
        };
        *self = Self { after, took: Duration::ZERO, next: Some(now + pause(self.took)) };
        answer
    }
}

/// To whom letters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Owned,
    Unowned,
}

/// A look for letters.
#[derive(Debug)]
pub(super) struct LetterLook {
    look: Look<i64>,
    /// Where the next one may begin.
    next: i64,
}

impl LetterLook {
    pub(super) fn from(&self) -> i64 {
        self.look.from.unwrap_or_default()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Letters {
    fn heads(&self, to: To) -> MutexGuard<'_, Heads<i64>> {
        locked(if to == To::Owned { &self.owned } else { &self.unowned })
    }

    /// A worker has got less than all letters to a saga that it is claiming. For a while, until the saga is in memory,
    /// looks for them may come too early.
    pub(super) fn left(&self, worker: WorkerId) {
        self.heads(To::Owned).missed(worker, Instant::now() + A_WHILE);
    }
}

impl PgStore {
    pub(super) async fn begin_to_look(&self, to: To, looks: Looks<'_>) -> Result<LetterLook, StoreError> {
        let letters = &self.inner.letters;
        if let Ok(_alone) = letters.reading.try_lock() {
            self.read_numbers(letters).await?;
        }
        let next = locked(&letters.numbers).before;
        Ok(LetterLook { look: letters.heads(to).begin(looks, Instant::now()), next })
    }

    async fn read_numbers(&self, letters: &Letters) -> Result<(), StoreError> {
        let now = Instant::now();
        let settled = {
            let mut numbers = locked(&letters.numbers);
            if numbers.next.is_some_and(|next| now < next) {
                return Ok(());
            }
            numbers.next = Some(now + A_WHILE / 4);
            numbers.settled.number()
        };
        // The number first, then who may have been given it.
        let numbered = self.rows(self.query(&self.queries().letters_numbered)).await?;
        let numbered = numbered.first().map(|row| column::<Option<i64>>(row, "numbered")).transpose()?;
        let (numbered, mut writers) = (numbered.flatten().unwrap_or_default(), Writers::default());
        // Nothing new may be settled: nobody need be asked who has it.
        if numbered != settled {
            let rows = self.rows(self.query(&self.queries().letters_writers)).await?;
            writers = Writers::of(&rows).map_err(|error| meaning_of(&error))?;
        }
        if !locked(&letters.numbers).saw(numbered, &writers, Instant::now()) {
            letters.heads(To::Owned).forget();
            letters.heads(To::Unowned).forget();
        }
        Ok(())
    }

    /// What a look's statement has answered; and whether it has found all letters that there were, as `all` says of the
    /// answer.
    pub(super) fn looked<A>(
        &self,
        to: To,
        looks: Looks<'_>,
        look: &LetterLook,
        answer: Result<A, StoreError>,
        all: impl FnOnce(&A) -> bool,
    ) -> Result<A, StoreError> {
        let (mut heads, now) = (self.inner.letters.heads(to), Instant::now());
        match &answer {
            Ok(found) => heads.end(looks, look.look, all(found).then_some(look.next), now),
            Err(_) => heads.failed(looks, look.look, look.next, now),
        }
        drop(heads);
        answer
    }

    /// Drops some letters to sagas that have ended, if it is time.
    pub(super) async fn drop_dead_letters(&self) -> Result<(), StoreError> {
        let (dead, began) = (&self.inner.letters.dead, Instant::now());
        let after = {
            let dead = locked(dead);
            if dead.next.is_some_and(|next| began < next) {
                return Ok(());
            }
            dead.after
        };
        let sql = self.query(&self.queries().drop_dead_mail).bind(after).bind(AT_A_TIME);
        let last = self.rows(sql).await.and_then(|rows| {
            let Some(row) = rows.first() else { return Ok(None) };
            let may_be_more = column::<i64>(row, "looked_at")? >= AT_A_TIME;
            Ok(column::<Option<Uuid>>(row, "last")?.filter(|_| may_be_more))
        });
        locked(dead).looked(last, began, Instant::now())
    }

    /// [`Store::mail`](saga_core::store::Store::mail).
    pub(super) async fn letters(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        limit: usize,
    ) -> Result<Vec<Mail>, StoreError> {
        let (names, versions) = unzipped(definitions)?;
        let looks = Looks { worker, lapses: u32::MAX, definitions };
        let look = self.begin_to_look(To::Owned, looks).await?;
        let portion = self.inner.portion.bytes();
        let sql = self.query(&self.queries().mail).bind(worker.as_uuid()).bind(names).bind(versions);
        let sql = sql.bind(count(limit)).bind(portion).bind(look.from());
        let rows = self.inner.portion.tried(self.rows(sql).await);
        let found = rows.and_then(|rows| rows.iter().map(mail).collect::<Result<Vec<_>, _>>());
        self.looked(To::Owned, looks, &look, found, |found| found.len() < limit && bytes(found) < portion)
    }
}

pub(super) fn bytes<'a>(letters: impl IntoIterator<Item = &'a Mail>) -> i64 {
    letters.into_iter().map(|letter| count(letter.body.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_to_sagas_that_have_ended_are_looked_for_some_at_a_time() {
        let (mut dead, now, second) = (DeadLetters::default(), Instant::now(), Duration::from_secs(1));
        let mut looked = |last: Result<_, ()>| {
            let _ = dead.looked(last, now, now + second);
            (dead.after, dead.next.map(|next| next - now - second))
        };
        let some = Uuid::from_u128(7);
        assert_eq!(looked(Ok(Some(some))), (some, None), "there are more: with the next sweep");
        assert_eq!(looked(Err(())), (some, Some(40 * second)), "it goes on from there, after a while");
        assert_eq!(looked(Ok(None)), (Uuid::nil(), Some(20 * second)), "it begins again");
    }

    #[test]
    fn a_look_begins_after_what_has_been_settled_for_a_while() {
        let (mut numbers, none, now) = (Numbers::default(), Writers::default(), Instant::now());
        let mut saw = |numbered, after: Duration| {
            let holds = numbers.saw(numbered, &none, now + after);
            (holds, numbers.before)
        };
        assert_eq!(saw(5, Duration::ZERO), (true, 0));
        assert_eq!(saw(6, A_WHILE / 2), (true, 0));
        assert_eq!(saw(7, A_WHILE), (true, 5));
        assert_eq!(saw(8, A_WHILE * 3 / 2), (true, 5));
        assert_eq!(saw(9, A_WHILE * 2), (true, 7));
        // Another server, which has not seen so many.
        assert_eq!(saw(4, A_WHILE * 5 / 2), (false, 0));
        assert_eq!(saw(4, A_WHILE * 7 / 2), (true, 4));
    }
}
