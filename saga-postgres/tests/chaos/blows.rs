//! What is done to worker processes.

use super::{
    dice::Dice,
    fleet::{self, Fleet},
    ledger, now,
};
use rustix::process::Signal;
use sqlx::PgPool;
use std::time::{Duration, Instant};
use tokio::time::sleep;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT when the lease has lapsed.
    Freeze,
}

/// A process was hit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blow {
    pub(crate) kind: Kind,
    pub(crate) pid: i32,
    /// From then on it did nothing ..
    pub(crate) at: i64,
    /// .. for good, or until then.
    pub(crate) until: Option<i64>,
}

/// Deals all the blows, often two at once.
///
/// Three losses of a worker without any progress between park a saga, by design: it may be what kills them. So the next blow waits until those
/// sagas that the last ones hit have moved on. No saga is hit without progress more than twice, once as the first worker's and
/// once as that of the one that took it over.
pub(crate) async fn deal(
    fleet: &Fleet,
    pool: &PgPool,
    dice: &Dice,
    lease: Duration,
    mut kinds: Vec<Kind>,
) -> Vec<Blow> {
    dice.shuffle(&mut kinds);
    let mut dealt = vec![];
    while let Some(kind) = kinds.pop() {
        let first = dice.within(0..fleet.places() as u64) as usize;
        let second = if dice.percent(60) { kinds.pop() } else { None };
        let both = async {
            let second = second?;
            sleep(dice.millis(0..lease.as_millis() as u64 * 3 / 2)).await;
            Some(hit(fleet, pool, dice, lease, (first + 1) % fleet.places(), second).await)
        };
        let (first, second) = tokio::join!(hit(fleet, pool, dice, lease, first, kind), both);
        // Until then the sagas of a killed worker do not look lost.
        let last = second.map_or(first.at, |second| second.at.max(first.at));
        let left = last + lease.as_micros() as i64 - now();
        sleep(Duration::from_micros(left.max(0).unsigned_abs())).await;
        until_all_moved_on(pool).await;
        dealt.push(first);
        dealt.extend(second);
    }
    dealt
}

async fn hit(fleet: &Fleet, pool: &PgPool, dice: &Dice, lease: Duration, place: usize, kind: Kind) -> Blow {
    let pid = at_work(fleet, pool, place).await;
    match kind {
        Kind::Kill => {
            fleet::signal(pid, Signal::KILL);
            Blow { kind, pid, at: now(), until: None }
        }
        Kind::Freeze => {
            fleet::signal(pid, Signal::STOP);
            let at = now();
            sleep(lease + dice.millis(50..500)).await;
            let until = Some(now());
            fleet::signal(pid, Signal::CONT);
            Blow { kind, pid, at, until }
        }
    }
}

/// Waits until the process has attempts under way: only then a blow hits something.
async fn at_work(fleet: &Fleet, pool: &PgPool, place: usize) -> i32 {
    let began = Instant::now();
    loop {
        let pid = fleet.pid(place).await;
        if ledger::under_way(pool, pid).await > 0 {
            return pid;
        }
        assert!(began.elapsed() < ledger::PATIENCE, "worker {pid} does nothing");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Unfinished sagas that a lost worker owned and that have not been taken over, or have not moved since.
const HIT: &str = "
    SELECT count(*)
    FROM saga.saga s
    LEFT JOIN saga.saga_worker w ON w.id = s.owner AND w.expires_at > now()
    LEFT JOIN LATERAL (
        SELECT convert_from(entry, 'UTF8')::jsonb -> -1 ? 'lapsed' AS lapsed, s.lapses > coalesce(total, 0) AS unnoticed
        FROM saga.saga_journal j, LATERAL (
            SELECT max((event -> 'lapsed' -> 'total')::integer) AS total
            FROM saga.saga_journal k, jsonb_array_elements(convert_from(k.entry, 'UTF8')::jsonb) event
            WHERE k.saga_id = s.id
        ) t
        WHERE j.saga_id = s.id ORDER BY seq DESC LIMIT 1
    ) last ON true
    WHERE s.status < 2
      AND (s.owner IS NOT NULL AND w.id IS NULL
        OR s.lapses > 0 AND (s.owner IS NULL OR last.lapsed IS NULL OR last.lapsed OR last.unnoticed))";

async fn until_all_moved_on(pool: &PgPool) {
    let began = Instant::now();
    loop {
        let hit: i64 = sqlx::query_scalar(HIT).fetch_one(pool).await.unwrap();
        if hit == 0 {
            return;
        }
        assert!(began.elapsed() < ledger::PATIENCE, "{hit} sagas of lost workers do not move on");
        sleep(Duration::from_millis(20)).await;
    }
}
