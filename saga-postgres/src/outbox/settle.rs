//! What follows from the broker's answers, in the database.

use super::{
    plan::{Key, Place, Plan},
    queries::OutboxQueries,
};
use crate::connection::in_time;
use sqlx::{Acquire, PgConnection, Postgres, SqlStr, postgres::PgArguments, query::Query};
use std::collections::BTreeSet;

/// So many bytes of a reason are kept.
const LONGEST_REASON: usize = 2_000;

/// What the broker has. It may be settled whenever there is a connection for it: a row that it has is never sent again,
/// whatever became of one before it, and to delete it twice does no harm.
#[derive(Debug, Default)]
pub(super) struct Sent {
    places: Vec<Place>,
    /// Keys that were parked because of them, with their shards.
    freed: Vec<(i16, Key)>,
}

impl Sent {
    pub(super) fn take_from(&mut self, plan: &mut Plan) {
        self.places.extend(plan.sent.drain(..).map(|(place, _)| place));
        self.freed.append(&mut plan.freed);
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.places.append(&mut other.places);
        self.freed.append(&mut other.freed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// Statements of one transaction. Where sessions do not last they have no names.
pub(super) struct Settling<'q> {
    pub(super) queries: &'q OutboxQueries,
    pub(super) named: bool,
}

impl Settling<'_> {
    fn query(&self, sql: &SqlStr) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql.clone()).persistent(self.named)
    }

    /// Keeps all relays away from the shards of the keys that are to be freed: one that found such a key parked may be
    /// about to put more behind it. A round that holds those shards need not do this.
    pub(super) async fn lock(&self, tx: &mut PgConnection, sent: &Sent) -> Result<(), sqlx::Error> {
        // In one order, so that two of these do not wait for each other.
        let mut shards: Vec<i16> = sent.freed.iter().map(|(shard, _)| *shard).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            in_time(self.query(&self.queries.lock_shard).bind(i32::from(shard)).execute(&mut *tx)).await?;
        }
        Ok(())
    }

    /// Deletes what the broker has.
    pub(super) async fn sent(&self, tx: &mut PgConnection, sent: &Sent) -> Result<(), sqlx::Error> {
        if !sent.places.is_empty() {
            // In one order, as two relays may have sent the same.
            let mut places = sent.places.clone();
            places.sort_unstable();
            let (shards, seqs): (Vec<i16>, Vec<i64>) = places.into_iter().unzip();
            in_time(self.query(&self.queries.sent).bind(shards).bind(seqs).execute(&mut *tx)).await?;
        }
        Ok(())
    }

    /// Gives back what was parked because of it: after others of those keys were put aside.
    pub(super) async fn free(&self, tx: &mut PgConnection, sent: &Sent) -> Result<(), sqlx::Error> {
        if !sent.freed.is_empty() {
            // Each of what was sent of a key says so.
            let keys: BTreeSet<&Key> = sent.freed.iter().map(|(_, key)| key).collect();
            let (topics, keys): (Vec<&str>, Vec<&str>) =
                keys.into_iter().map(|(topic, key)| (topic.as_str(), key.as_str())).unzip();
            in_time(self.query(&self.queries.free).bind(topics).bind(keys).execute(&mut *tx)).await?;
        }
        Ok(())
    }

    /// Puts events aside, with what can be written of the reasons. The rest of the transaction does not depend on it:
    /// what was sent must not be sent again because a reason has a character that the database has not.
    ///
    /// Answers whether it was done.
    pub(super) async fn park(
        &self,
        tx: &mut PgConnection,
        aside: &[(Place, Option<String>)],
    ) -> Result<bool, sqlx::Error> {
        if aside.is_empty() {
            return Ok(true);
        }
        for written in [in_short as fn(&str) -> String, in_ascii] {
            let mut attempt = in_time(tx.begin()).await?;
            let (shards, seqs): (Vec<i16>, Vec<i64>) = aside.iter().map(|(place, _)| *place).unzip();
            let reasons: Vec<Option<String>> = aside.iter().map(|(_, reason)| reason.as_deref().map(written)).collect();
            let park = self.query(&self.queries.park).bind(shards).bind(seqs).bind(reasons);
            match in_time(park.execute(&mut *attempt)).await {
                Ok(_) => return in_time(attempt.commit()).await.map(|()| true),
                Err(error @ sqlx::Error::Database(_)) => {
                    in_time(attempt.rollback()).await?;
                    tracing::warn!(%error, "what the broker refused could not be parked as it is");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// A reason without the one character that Postgres does not take, cut.
fn in_short(reason: &str) -> String {
    let end = (0..=LONGEST_REASON.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
    reason[..end.unwrap_or_default()].replace('\0', " ")
}

/// A reason that can be written in any encoding.
fn in_ascii(reason: &str) -> String {
    in_short(reason).chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters_and_has_nothing_that_cannot_be_written() {
        assert_eq!(in_short("not\0this"), "not this");
        assert_eq!(in_ascii("größer als 1 €"), "gr??er als 1 ?");
        let long = format!("x{}", "é".repeat(LONGEST_REASON));
        assert_eq!(in_short(&long).len(), LONGEST_REASON - 1);
        assert_eq!(in_short(""), "");
    }
}
