//! Where a look for letters begins.
//!
//! Letters are numbered. A look reads those after the number that was [settled](crate::settled) two seconds before the
//! last look: none of these appears any more, and each was looked at for two seconds at least. Those are for a letter
//! that came while its saga was on its way, from the database to a worker or back: it was passed over then, and is
//! found by the next look. What takes longer than that is found by a full look.

use super::{
    PgStore,
    heads::{Heads, Look, Looks},
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

/// For so long each letter is looked at, at least.
const A_WHILE: Duration = Duration::from_secs(2);

/// What is known of the letters' numbers.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// For letters to sagas that a worker owns, and to those that it might claim.
    owned: Mutex<Heads<i64>>,
    unowned: Mutex<Heads<i64>>,
    numbers: Mutex<Numbers>,
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

    /// A worker has got less than all letters to a saga of its own.
    pub(super) fn left(&self, worker: WorkerId) {
        self.heads(To::Owned).forget(worker);
    }
}

impl PgStore {
    pub(super) async fn begin_to_look(&self, to: To, looks: Looks) -> Result<LetterLook, StoreError> {
        let (letters, now) = (&self.inner.letters, Instant::now());
        let read = {
            let mut numbers = locked(&letters.numbers);
            let read = numbers.next.is_none_or(|next| next <= now);
            if read {
                numbers.next = Some(now + A_WHILE / 4);
            }
            read
        };
        if read {
            // The number first, then who may have been given it.
            let numbered = self.rows(self.query(&self.queries().letters_numbered)).await?;
            let numbered = numbered.first().map(|row| column::<Option<i64>>(row, "numbered")).transpose()?;
            let writers = self.rows(self.query(&self.queries().letters_writers)).await?;
            let writers = Writers::of(&writers).map_err(|error| meaning_of(&error))?;
            if !locked(&letters.numbers).saw(numbered.flatten().unwrap_or_default(), &writers, Instant::now()) {
                *letters.heads(To::Owned) = Heads::default();
                *letters.heads(To::Unowned) = Heads::default();
            }
        }
        let next = locked(&letters.numbers).before;
        Ok(LetterLook { look: letters.heads(to).begin(looks, Instant::now()), next })
    }

    /// Says whether the look has found all letters that there were.
    pub(super) fn have_looked(&self, to: To, looks: Looks, look: &LetterLook, all: bool) {
        self.inner.letters.heads(to).end(looks, look.look, all.then_some(look.next), Instant::now());
    }

    /// [`Store::mail`](saga_core::store::Store::mail).
    pub(super) async fn letters(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        limit: usize,
    ) -> Result<Vec<Mail>, StoreError> {
        let (names, versions) = unzipped(definitions)?;
        let looks = (worker, u32::MAX);
        let look = self.begin_to_look(To::Owned, looks).await?;
        let portion = self.inner.portion.bytes();
        let sql = self.query(&self.queries().mail).bind(worker.as_uuid()).bind(names).bind(versions);
        let sql = sql.bind(count(limit)).bind(portion).bind(look.from());
        let rows = self.inner.portion.tried(self.rows(sql).await)?;
        let letters = rows.iter().map(mail).collect::<Result<Vec<_>, _>>()?;
        let all = letters.len() < limit && bytes(&letters) < portion;
        self.have_looked(To::Owned, looks, &look, all);
        Ok(letters)
    }
}

pub(super) fn bytes<'a>(letters: impl IntoIterator<Item = &'a Mail>) -> i64 {
    letters.into_iter().map(|letter| count(letter.body.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

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
