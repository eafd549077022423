//! Rows, as the engine knows them.

use super::watch::Worker;
use chrono::{DateTime, Utc};
use saga_core::{
    Encoded,
    machine::Status,
    store::{DefinitionId, Mail, Record, Snapshot, StoreError},
    trace::TraceContext,
};
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;
use uuid::Uuid;

pub(super) fn column<'r, T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
    row: &'r PgRow,
    name: &str,
) -> Result<T, StoreError> {
    row.try_get(name).map_err(|error| StoreError::Unavailable(error.to_string()))
}

pub(super) fn record(row: &PgRow) -> Result<Record, StoreError> {
    let input = Encoded::from_bytes(column(row, "input")?);
    Ok(Record {
        saga: column::<Uuid>(row, "id")?.into(),
        name: column(row, "name")?,
        version: column::<i32>(row, "version")?.unsigned_abs(),
        key: column(row, "key")?,
        status: status(column(row, "status")?)?,
        input: input.map_err(|error| StoreError::Unavailable(error.to_string()))?,
        trace: TraceContext {
            traceparent: column(row, "traceparent")?,
            tracestate: column(row, "tracestate")?,
            baggage: column(row, "baggage")?,
        },
        epoch: column(row, "epoch")?,
        lapses: column::<i32>(row, "lapses")?.unsigned_abs(),
        survived: survived(row)?,
        age: age(row, None)?,
        snapshot: None,
        journal: vec![],
        mail: vec![],
    })
}

/// With its snapshot.
pub(super) fn claimed(row: &PgRow) -> Result<Record, StoreError> {
    let seq: Option<i32> = column(row, "snapshot_seq")?;
    let snapshot = match seq {
        Some(seq) => column::<Option<Vec<u8>>>(row, "snapshot")?.map(|state| Snapshot { seq, state }),
        None => None,
    };
    Ok(Record { snapshot, ..record(row)? })
}

/// How old a saga is. If the clock was set back, it is as old as its owner said when it was put back, or as its journal
/// tells.
pub(super) fn age(row: &PgRow, journaled: Option<DateTime<Utc>>) -> Result<Duration, StoreError> {
    let (started, looked): (DateTime<Utc>, DateTime<Utc>) = (column(row, "started_at")?, column(row, "looked_at")?);
    let counted = (looked.max(journaled.unwrap_or(looked)) - started).to_std().unwrap_or_default();
    let told = column::<Option<i64>>(row, "told_ms")?.unwrap_or_default();
    Ok(counted.max(Duration::from_millis(told.try_into().unwrap_or_default())))
}

/// The numbers of the lapses whose workers came back.
fn survived(row: &PgRow) -> Result<Vec<u32>, StoreError> {
    let lost_with: Option<Vec<Option<Uuid>>> = column(row, "lost_with")?;
    Ok((1..)
        .zip(lost_with.unwrap_or_default())
        .filter(|(_, worker)| worker.is_none())
        .map(|(number, _)| number)
        .collect())
}

pub(super) fn mail(row: &PgRow) -> Result<Mail, StoreError> {
    Ok(Mail {
        saga: column::<Uuid>(row, "saga_id")?.into(),
        message: column(row, "message")?,
        body: column(row, "body")?,
    })
}

pub(super) const fn code(status: Status) -> i16 {
    match status {
        Status::Running => 0,
        Status::Compensating => 1,
        Status::Parked => 2,
        Status::Completed => 3,
        Status::RolledBack => 4,
    }
}

pub(super) fn status(code: i16) -> Result<Status, StoreError> {
    Ok(match code {
        0 => Status::Running,
        1 => Status::Compensating,
        2 => Status::Parked,
        3 => Status::Completed,
        4 => Status::RolledBack,
        _ => return Err(StoreError::Unavailable(format!("status {code} is of a newer version of this library"))),
    })
}

pub(super) fn version(version: u32) -> Result<i32, StoreError> {
    i32::try_from(version).map_err(|_| StoreError::Rejected(format!("version {version} is too large")))
}

pub(super) fn unzipped(definitions: &[DefinitionId]) -> Result<(Vec<&str>, Vec<i32>), StoreError> {
    let versions = definitions.iter().map(|definition| version(definition.version)).collect::<Result<_, _>>()?;
    Ok((definitions.iter().map(|definition| definition.name.as_str()).collect(), versions))
}

pub(super) fn millis(duration: Duration) -> i64 {
    // A thousand years are enough, and Postgres can still add them to a date.
    const LONGEST: u128 = 1000 * 365 * 24 * 3600 * 1000;
    i64::try_from(duration.as_millis().min(LONGEST)).unwrap_or(i64::MAX)
}

pub(super) fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(super) fn worker(row: &PgRow) -> Result<Worker, StoreError> {
    let lease: Option<i64> = column(row, "lease_ms")?;
    Ok(Worker {
        id: column(row, "id")?,
        until: column(row, "expires_at")?,
        expired: column(row, "expired")?,
        lease: lease.map(|lease| Duration::from_millis(lease.unsigned_abs())),
    })
}
