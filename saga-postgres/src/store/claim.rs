//! Claims, and what is read with them.

use super::{
    PgStore,
    heads::Looks,
    letters::{To, bytes},
    rows::{age, claimed, column, count, mail, unzipped},
};
use chrono::{DateTime, Utc};
use saga_core::{
    WorkerId,
    store::{DefinitionId, Mail, Record, Ripe, Room, StoreError},
};
use sqlx::{Row, postgres::PgRow};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// What is due may be committed so much later.
const LATE: Duration = Duration::from_secs(10);

/// Entries, and when the last one was written.
type Journal = (Vec<Vec<u8>>, Option<DateTime<Utc>>);

/// How many sagas a claim has found, of which it took some.
fn found(claimed: &[PgRow]) -> Result<usize, StoreError> {
    let found = claimed.first().map(|row| column::<i64>(row, "found")).transpose()?.unwrap_or_default();
    Ok(usize::try_from(found).unwrap_or_default())
}

impl PgStore {
    /// [`Store::claim`](saga_core::store::Store::claim).
    pub(super) async fn take(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        ripe: Ripe,
        room: Room,
    ) -> Result<Vec<Record>, StoreError> {
        let mut taken: Vec<Record> = vec![];
        loop {
            let left = room.sagas - taken.len();
            let asked = match ripe {
                Ripe::Due => left.min(self.inner.portion.sagas()),
                // Which of these can be run is not known yet: few of them could be all that cannot.
                Ripe::Mailed => left,
            };
            // After an error the engine gives back all that it does not know of, and claims it again.
            let (claimed, found) = self.some(worker, definitions, ripe, Room { sagas: asked, ..room }).await?;
            let some = claimed.len();
            taken.extend(claimed);
            // There were no more, or they are a load by now.
            let bytes: usize = taken.iter().map(Record::bytes).sum();
            if found < asked || some < found || taken.len() >= room.sagas || count(bytes) >= self.inner.portion.bytes()
            {
                return Ok(taken);
            }
        }
    }

    /// One statement of a claim: what it took, and how many it found.
    async fn some(
        &self,
        worker: WorkerId,
        definitions: &[DefinitionId],
        ripe: Ripe,
        room: Room,
    ) -> Result<(Vec<Record>, usize), StoreError> {
        let (names, versions) = unzipped(definitions)?;
        let sql = match ripe {
            Ripe::Mailed => &self.queries().claim_mailed,
            Ripe::Due => &self.queries().claim_due,
        };
        let sql = self.query(sql).bind(worker.as_uuid()).bind(names).bind(versions).bind(count(room.sagas));
        let sql = sql.bind(self.inner.portion.bytes().min(count(room.bytes)).max(1));
        let sql = sql.bind(i32::try_from(room.lapses).unwrap_or(i32::MAX));
        let looks = Looks { worker, lapses: room.lapses, definitions };
        let (claimed, found) = match ripe {
            Ripe::Due => {
                let look = self.heads().begin(looks, Instant::now());
                let sql = sql.bind(look.from.unwrap_or(DateTime::UNIX_EPOCH)).bind((LATE + look.since()).as_secs_f64());
                let claimed = self.inner.portion.tried(self.rows(sql).await).inspect_err(|_| {
                    // They may have been too many to be weighed in the time that there is, or too many are in the way.
                    self.inner.portion.held(room.sagas, room.sagas / 8);
                    self.heads().failed(looks, look, DateTime::<Utc>::MAX_UTC, Instant::now());
                })?;
                let due = claimed.iter().map(|row| column::<DateTime<Utc>>(row, "was_due"));
                let last = due.collect::<Result<Vec<_>, _>>()?.into_iter().max();
                // What was due before that is found all the same for a while, see the statement.
                self.heads().end(looks, look, Some(last.unwrap_or(DateTime::<Utc>::MAX_UTC)), Instant::now());
                let found = found(&claimed)?;
                self.inner.portion.held(found, claimed.len());
                (claimed, found)
            }
            Ripe::Mailed => {
                let look = self.begin_to_look(To::Unowned, looks).await?;
                let claimed = self.inner.portion.tried(self.rows(sql.bind(look.from())).await);
                let counted = claimed.and_then(|claimed| found(&claimed).map(|found| (claimed, found)));
                self.looked(To::Unowned, looks, &look, counted, |(claimed, found)| {
                    *found < room.sagas && claimed.len() == *found
                })?
            }
        };
        Ok((self.records(worker, claimed).await?, found))
    }

    async fn records(&self, worker: WorkerId, rows: Vec<PgRow>) -> Result<Vec<Record>, StoreError> {
        // One row that cannot be read (of a newer version of this library, or damaged) fails no other: it is given
        // back.
        let readable = |row| match claimed(row) {
            Ok(record) => Some((row, record)),
            Err(error) => {
                tracing::error!(saga = ?row.try_get::<Uuid, _>("id"), %error, "cannot read a saga's row");
                None
            }
        };
        let mut records: Vec<(&PgRow, Record)> = rows.iter().filter_map(readable).collect();
        if records.is_empty() {
            return Ok(vec![]);
        }
        let ids: Vec<Uuid> = records.iter().map(|(_, record)| record.saga.as_uuid()).collect();
        let mut journals = self.journals(records.iter().map(|(_, record)| record)).await?;
        let mut unread: HashMap<Uuid, Vec<Mail>> = HashMap::new();
        let portion = self.inner.portion.bytes();
        let sql = self.query(&self.queries().unread).bind(&ids).bind(portion);
        let rows = self.inner.portion.tried(self.rows(sql).await)?;
        let letters = rows.iter().map(mail).collect::<Result<Vec<_>, _>>()?;
        if bytes(&letters) >= portion {
            self.inner.letters.left(worker);
        }
        for letter in letters {
            unread.entry(letter.saga.as_uuid()).or_default().push(letter);
        }
        for (row, record) in &mut records {
            let (journal, latest) = journals.remove(&record.saga.as_uuid()).unwrap_or_default();
            (record.journal, record.age) = (journal, age(row, latest)?);
            record.mail = unread.remove(&record.saga.as_uuid()).unwrap_or_default();
        }
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// What these sagas' journals have behind their snapshots, read by portions.
    async fn journals(&self, records: impl Iterator<Item = &Record>) -> Result<HashMap<Uuid, Journal>, StoreError> {
        let (mut ids, mut seqs): (Vec<Uuid>, Vec<i32>) =
            records.map(|record| (record.saga.as_uuid(), record.seq())).unzip();
        let mut journals: HashMap<Uuid, Journal> = HashMap::new();
        loop {
            let portion = self.inner.portion.bytes();
            let sql = self.query(&self.queries().journals).bind(&ids).bind(&seqs).bind(portion);
            let (mut bytes, mut last) = (0, None);
            for row in self.inner.portion.tried(self.rows(sql).await)? {
                let (saga, entry): (Uuid, Vec<u8>) = (column(&row, "saga_id")?, column(&row, "entry")?);
                bytes += count(entry.len());
                last = Some((saga, column::<i32>(&row, "seq")?));
                let (journal, latest) = journals.entry(saga).or_default();
                journal.push(entry);
                *latest = (*latest).max(Some(column(&row, "at")?));
            }
            // They come in the order of the ids: what is before the last one is read.
            match last.and_then(|(saga, seq)| Some((ids.iter().position(|id| *id == saga)?, seq))) {
                Some((place, seq)) if bytes >= portion => {
                    ids.drain(..place);
                    seqs.drain(..place);
                    seqs[0] = seq;
                }
                _ => return Ok(journals),
            }
        }
    }
}
