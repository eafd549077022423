//! Which numbers of a sequence have come to rest.
//!
//! A row with a lower number may be committed after one with a higher number. So who remembers where to read on must
//! know that no number below that may still appear. Such a number is *settled*: all who were given it, or a lower one,
//! have committed or rolled back.
//!
//! Whoever writes to a table holds a lock on it from before it is given a number until it ends. So the highest number
//! that was given out is read first, and then who holds that lock: when all of those have ended, that number is
//! settled. It is the same question, answered in the same way, that `CREATE INDEX CONCURRENTLY` asks.
//!
//! A transaction that has written and stays open keeps the settled number where it was. So does one that was prepared:
//! it goes by another name then.

use sqlx::{Row as _, postgres::PgRow};
use std::collections::HashSet;

/// The transactions that write to a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writers {
    transactions: HashSet<String>,
    /// Whether one of them was prepared.
    prepared: bool,
}

impl Writers {
    /// As the statements named `writers` find them.
    pub(crate) fn of(rows: &[PgRow]) -> Result<Self, sqlx::Error> {
        let mut writers = Self::default();
        for row in rows {
            writers.prepared |= row.try_get::<bool, _>("prepared")?;
            writers.transactions.extend(row.try_get::<Option<String>, _>("transaction")?);
        }
        Ok(writers)
    }
}

/// A settled number.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    number: i64,
    settling: Option<Settling>,
}

/// A number that is settled when these have ended.
#[derive(Debug)]
struct Settling {
    number: i64,
    writers: HashSet<String>,
}

impl Settled {
    pub(crate) fn number(&self) -> i64 {
        self.number
    }

    /// Takes note of the highest number that was given out, and of who wrote *after* that was read. Says whether what
    /// was known before still holds: it does not when the sequence was set back, or is another server's.
    pub(crate) fn saw(&mut self, numbered: i64, writers: &Writers) -> bool {
        let holds = numbered >= self.number;
        if !holds {
            *self = Self::default();
        }
        // Seen before that one, by a reading whose answer came late; or another server's.
        self.settling.take_if(|settling| numbered < settling.number);
        let new = || Settling { number: numbered, writers: writers.transactions.clone() };
        let settling = self.settling.get_or_insert_with(new);
        if !writers.prepared && settling.writers.is_disjoint(&writers.transactions) {
            self.number = settling.number;
            self.settling = None;
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writers(transactions: &[&str]) -> Writers {
        Writers { transactions: transactions.iter().map(|&name| name.into()).collect(), prepared: false }
    }

    #[test]
    fn a_number_is_settled_when_those_who_wrote_then_have_ended() {
        let mut settled = Settled::default();
        assert!(settled.saw(5, &writers(&["1/1", "2/1"])) && settled.number() == 0);
        assert!(settled.saw(7, &writers(&["2/1", "3/1"])) && settled.number() == 0);
        // Not for ever: others may come, without end.
        assert!(settled.saw(8, &writers(&["3/1"])) && settled.number() == 5);
        assert!(settled.saw(8, &writers(&[])) && settled.number() == 8);
    }

    #[test]
    fn a_reading_that_comes_late_settles_nothing_newer() {
        let mut settled = Settled::default();
        assert!(settled.saw(10, &writers(&["1/1"])) && settled.number() == 0);
        assert!(settled.saw(5, &writers(&[])) && settled.number() == 5);
    }

    #[test]
    fn nothing_is_settled_beside_what_was_prepared() {
        let mut settled = Settled::default();
        settled.saw(5, &Writers { prepared: true, ..writers(&[]) });
        assert_eq!(settled.number(), 0);
        settled.saw(6, &writers(&[]));
        assert_eq!(settled.number(), 5);
    }

    #[test]
    fn a_sequence_that_was_set_back_is_another_one() {
        let mut settled = Settled::default();
        assert!(settled.saw(5, &writers(&[])));
        assert!(!settled.saw(3, &writers(&["1/1"])));
        assert_eq!(settled.number(), 0);
    }
}
