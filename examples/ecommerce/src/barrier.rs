//! The barrier: what makes a participant safe to call twice, too late, or in the wrong order.
//!
//! One row for each idempotency key, shared by a command and its undo, written in the transaction that does the work:
//!
//! | what comes in | what happens |
//! |---|---|
//! | a command, for the first time | it is done, and its answer kept |
//! | the same command again | nothing; the answer is the kept one, a refusal too |
//! | two of the same at once | the second waits for the first, then as above |
//! | an undo | it is undone |
//! | the undo again | nothing |
//! | an undo whose command never came | a tombstone is left |
//! | a command after its undo | it is refused |
//!
//! Only final answers are kept. When the transaction fails, nothing was done and no row is left.

use crate::service::{Answer, IdempotencyKey, Problem, refused};
use sqlx::{PgPool, PgTransaction};

/// The table; part of each participant's database.
pub const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS barrier (
        key     text PRIMARY KEY,
        undone  boolean NOT NULL DEFAULT false,
        status  int,  -- the answer; none in a tombstone
        body    text
    )";

/// What a command finds.
pub enum Command {
    /// It is the first: do the work in this transaction, then [`answer`].
    First(PgTransaction<'static>),
    /// It came before (or too late): this is the answer.
    Again(Answer),
}

/// A command knocks.
pub async fn command(db: &PgPool, key: &IdempotencyKey) -> Result<Command, Problem> {
    let mut tx = db.begin().await?;
    // Waits for whoever is inserting the same key right now.
    let first = sqlx::query("INSERT INTO barrier (key) VALUES ($1) ON CONFLICT DO NOTHING")
        .bind(&key.0)
        .execute(&mut *tx)
        .await?;
    if first.rows_affected() == 1 {
        return Ok(Command::First(tx));
    }
    Ok(Command::Again(match row(&mut tx, key).await? {
        (false, Some(status), Some(body)) => Answer::kept(status, &body)?,
        _ => refused("this was undone before it came"),
    }))
}

/// Keeps a command's final answer, and commits it with the work. An answer that refuses comes before any work.
pub async fn answer(mut tx: PgTransaction<'static>, key: &IdempotencyKey, answer: Answer) -> Result<Answer, Problem> {
    sqlx::query("UPDATE barrier SET status = $2, body = $3 WHERE key = $1")
        .bind(&key.0)
        .bind(i32::from(answer.status.as_u16()))
        .bind(answer.body.to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(answer)
}

/// An undo knocks. With a transaction there is something to undo: do it in there, and commit.
pub async fn undo(db: &PgPool, key: &IdempotencyKey) -> Result<Option<PgTransaction<'static>>, Problem> {
    let mut tx = db.begin().await?;
    let first = sqlx::query("INSERT INTO barrier (key, undone) VALUES ($1, true) ON CONFLICT DO NOTHING")
        .bind(&key.0)
        .execute(&mut *tx)
        .await?;
    if first.rows_affected() == 1 {
        tx.commit().await?;
        return Ok(None);
    }
    match row(&mut tx, key).await? {
        (false, Some(status), _) if status < 300 => {
            sqlx::query("UPDATE barrier SET undone = true WHERE key = $1").bind(&key.0).execute(&mut *tx).await?;
            Ok(Some(tx))
        }
        _ => Ok(None),
    }
}

/// In a statement of its own, so that it sees what the insert has waited for.
async fn row(
    tx: &mut PgTransaction<'static>,
    key: &IdempotencyKey,
) -> Result<(bool, Option<i32>, Option<String>), sqlx::Error> {
    sqlx::query_as("SELECT undone, status, body FROM barrier WHERE key = $1 FOR UPDATE")
        .bind(&key.0)
        .fetch_one(&mut **tx)
        .await
}
