//! `claim`: what is due or has mail, the longest due first, to one worker each.

use super::Broken;
use super::trial::{DUE_NOW, Trial, Verdict, WRITTEN, definition, entry, json, mail, no_entry, order, same, start};
use crate::{
    SagaId,
    machine::Status,
    store::{Append, Appended, Record, Ripe, Room, Snapshot, SnapshotChange, Start, Then},
    trace::TraceContext,
};
use std::{collections::HashSet, time::Duration};
use tokio::time::sleep;

pub(super) async fn no_more_than_the_limit_is_claimed(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    for i in 0..5 {
        let saga = trial.begin(start(&format!("k{i}"))).await?;
        trial.deliver(&mail(saga, "m")).await?;
    }
    for waiting in ["a", "b"] {
        let saga = trial.begin_owned(worker, waiting).await?;
        trial.release(worker, saga, 1, None).await?;
        trial.deliver(&mail(saga, "m")).await?;
    }
    let mut left = 7;
    for (limit, promised) in [(1, 1), (3, 3), (2, 2), (2, 1), (2, 0)] {
        let claimed = trial.claim(worker, &[order()], limit).await?.len();
        same(&format!("sagas in a claim of {limit}, of {left} that are left"), claimed, promised)?;
        left -= claimed;
    }
    Ok(())
}

pub(super) async fn a_claim_takes_what_is_ripe_as_it_was_asked_and_nothing_else(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let due = trial.begin(start("due")).await?;
    let mailed = trial.begin_owned(worker, "mailed").await?;
    trial.release(worker, mailed, 1, None).await?;
    trial.deliver(&mail(mailed, "m")).await?;
    for (ripe, other, promised) in [(Ripe::Due, Ripe::Mailed, due), (Ripe::Mailed, Ripe::Due, mailed)] {
        let claimed = trial.claim_ripe(worker, ripe, 10).await?;
        let claimed: Vec<SagaId> = claimed.iter().map(|record| record.saga).collect();
        same(&format!("what is {ripe:?}, when another is {other:?}"), &claimed[..], [promised])?;
    }
    Ok(())
}

pub(super) async fn what_has_been_due_longest_is_claimed_first(trial: Trial) -> Verdict {
    let defined = [order(), definition("invoice", 1)];
    let worker = trial.worker(&defined).await?;
    let mut by_due = vec![];
    let mut releases = vec![];
    // Against the order of their ids, and across definitions.
    for (i, due_in) in [150_u64, 120, 90, 60, 30, 0].into_iter().enumerate() {
        let name = if i % 2 == 0 { "order" } else { "invoice" };
        let start = Start { name: name.into(), owner: Some(worker), ..start(&format!("k{i}")) };
        let saga = trial.begin(start).await?;
        let then = Then::Release { due_in: Some(Duration::from_millis(due_in)) };
        releases.push(Append { then, ..no_entry(saga, 1, 1) });
        by_due.insert(0, saga);
    }
    same("answers", &trial.append(worker, &releases).await?[..], [WRITTEN; 6])?;
    sleep(Duration::from_millis(250)).await;
    let mut claimed = vec![];
    for limit in [1, 2, 1, 1, 1] {
        let mut batch = trial.claim(worker, &defined, limit).await?;
        batch.sort_by_key(|record| by_due.iter().position(|saga| *saga == record.saga));
        claimed.extend(batch.into_iter().map(|record| record.saga));
    }
    same("the sagas in the order of their claims", claimed, by_due)
}

pub(super) async fn only_the_given_definitions_are_claimed(trial: Trial) -> Verdict {
    let worker = trial.worker(&[order()]).await?;
    let all = [("order", 1), ("order", 2), ("order", 11), ("invoice", 1), ("invoice", 2), ("Order", 2), ("order ", 2)];
    for with_mail in [false, true] {
        let mut sagas = vec![];
        for (name, version) in all {
            let owner = with_mail.then_some(worker);
            let start = Start { name: name.into(), version, owner, ..start(&format!("k{version}{with_mail}")) };
            let saga = trial.begin(start).await?;
            if with_mail {
                trial.release(worker, saga, 1, None).await?;
                trial.deliver(&mail(saga, "m")).await?;
            }
            sagas.push((definition(name, version), saga));
        }
        let nothing = trial.claim(worker, &[], 10).await?;
        promise!(nothing.is_empty(), "a claim for no definition at all answered with {nothing:?}");
        // Names and versions belong together: order 1 and invoice 2 are not asked for.
        for known in [vec![definition("order", 2), definition("invoice", 1)], vec![definition("nothing", 1)]] {
            let promised: HashSet<SagaId> =
                sagas.iter().filter(|(definition, _)| known.contains(definition)).map(|(_, saga)| *saga).collect();
            let claimed: HashSet<SagaId> =
                trial.claim(worker, &known, 10).await?.iter().map(|record| record.saga).collect();
            same(&format!("sagas that were claimed for {known:?}, with mail: {with_mail}"), claimed, promised)?;
        }
    }
    Ok(())
}

pub(super) async fn of_two_claims_at_the_same_time_each_gets_sagas_of_its_own(trial: Trial) -> Verdict {
    const SAGAS: usize = 80;
    let worker = trial.clerk().await?;
    let sagas: Vec<Start> =
        (0..SAGAS).map(|i| Start { owner: (i % 2 == 0).then_some(worker), ..start(&format!("k{i}")) }).collect();
    trial.start(&sagas).await?;
    // Half of them are due, half of them have mail only, and some have both.
    for start in &sagas {
        if start.owner.is_some() {
            trial.release(worker, start.saga, 1, None).await?;
        }
    }
    trial
        .post(
            &sagas
                .iter()
                .step_by(3)
                .chain(sagas.iter().step_by(2))
                .map(|start| mail(start.saga, "m"))
                .collect::<Vec<_>>(),
        )
        .await?;
    let mut claimers = vec![];
    for limit in [7, 1, 5, 3] {
        let (trial, claimer) = (trial.clone(), trial.clerk().await?);
        claimers.push(tokio::spawn(async move {
            let mut claimed: Vec<Record> = vec![];
            let mut idle = 0;
            // What another one is about to claim may be passed over: only several empty answers say that there is nothing left.
            while idle < 5 {
                let batch = trial.claim(claimer, &[order()], limit).await?;
                idle = if batch.is_empty() { idle + 1 } else { 0 };
                if batch.is_empty() {
                    sleep(Duration::from_millis(10)).await;
                }
                claimed.extend(batch);
                promise!(claimed.len() <= SAGAS, "of {SAGAS} sagas a worker could claim more, one after the other");
            }
            let owned = trial.owned(claimer).await?;
            same("owned", owned, claimed.iter().map(|record| record.saga).collect::<HashSet<_>>())?;
            Ok::<_, Broken>(claimed)
        }));
    }
    let mut claimed = vec![];
    for claimer in claimers {
        claimed.extend(claimer.await.unwrap()?.into_iter().map(|record| record.saga));
    }
    let distinct: HashSet<SagaId> = claimed.iter().copied().collect();
    same("different sagas among those claimed", distinct.len(), claimed.len())?;
    same("sagas that were claimed", claimed.len(), SAGAS)
}

pub(super) async fn the_record_of_a_claim_is_complete(trial: Trial) -> Verdict {
    let (first, second) = (trial.clerk().await?, trial.clerk().await?);
    let trace = TraceContext {
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        tracestate: Some("rojo=00f067aa0ba902b7".into()),
        baggage: Some("user=Am%C3%A9lie".into()),
    };
    let input = json(r#"{ "b":"\u0000", "a": 1.50 }"#);
    let start = Start { input, trace, owner: Some(first), ..start("a key") };
    let saga = trial.begin(start.clone()).await?;
    let bystander = trial.begin_owned(first, "bystander").await?;
    trial.write(first, &entry(bystander, 1, 1, "not yours")).await?;
    for message in ["m1", "m2", "m3"] {
        trial.deliver(&mail(saga, message)).await?;
        trial.deliver(&mail(bystander, message)).await?;
    }
    trial.write(first, &Append { read: vec!["m2".into()], ..entry(saga, 1, 1, "one") }).await?;
    let status = Some(Status::Compensating);
    let then = Then::Release { due_in: DUE_NOW };
    trial.write(first, &Append { status, then, ..entry(saga, 1, 2, "two") }).await?;
    let record = trial.claim_one(second, saga).await?;
    same("name", &record.name, &start.name)?;
    same("version", record.version, start.version)?;
    same("key", &record.key, &start.key)?;
    same("input", record.input.as_str(), start.input.as_str())?;
    same("trace", &record.trace, &start.trace)?;
    same("status", record.status, Status::Compensating)?;
    promise!(record.epoch > 1, "the epoch did not grow over a claim: {}", record.epoch);
    same("lapses", record.lapses, 0)?;
    same("journal", &record.journal[..], [b"one".to_vec(), b"two".to_vec()])?;
    same("mail", &record.mail[..], [mail(saga, "m1"), mail(saga, "m3")])?;
    let read = trial.record(saga).await?;
    same("the trace that is read", &read.trace, &start.trace)?;
    same("the record that is read", (read.epoch, read.journal, read.mail), (record.epoch, record.journal, record.mail))
}

pub(super) async fn a_claim_reads_what_comes_after_the_snapshot_or_everything(trial: Trial) -> Verdict {
    let (first, second) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(first, "k").await?;
    let kept = |append, state: &str| Append { snapshot: SnapshotChange::Replace(state.into()), ..append };
    trial.write(first, &entry(saga, 1, 1, "one")).await?;
    trial.write(first, &kept(entry(saga, 1, 2, "two"), "a state")).await?;
    trial.write(first, &entry(saga, 1, 3, "three")).await?;
    trial.write(first, &kept(entry(saga, 1, 4, "four"), "another state")).await?;
    let then = Then::Release { due_in: DUE_NOW };
    trial.write(first, &Append { then, ..entry(saga, 1, 5, "five") }).await?;
    let record = trial.claim_one(second, saga).await?;
    same("the place of the last entry", record.seq(), 5)?;
    if let Some(snapshot) = &record.snapshot {
        same("the snapshot", snapshot, &Snapshot { seq: 4, state: b"another state".to_vec() })?;
        same("the entries after it", &record.journal[..], [b"five".to_vec()])?;
    } else {
        same("the entries", record.journal.len(), 5)?;
    }
    trial.has_journal(saga, &["one", "two", "three", "four", "five"]).await?;
    same("a snapshot with the whole journal", trial.record(saga).await?.snapshot, None::<Snapshot>)?;

    let gone = Append { snapshot: SnapshotChange::Remove, then, ..entry(saga, record.epoch, 6, "six") };
    trial.write(second, &gone).await?;
    let record = trial.claim_one(first, saga).await?;
    same("a snapshot that was removed", record.snapshot, None::<Snapshot>)?;
    same("all entries", record.journal.len(), 6)
}

pub(super) async fn a_claim_takes_no_more_than_there_is_room_for_but_one_at_least(trial: Trial) -> Verdict {
    const SAGAS: usize = 6;
    let (first, second) = (trial.clerk().await?, trial.clerk().await?);
    let entries = "x".repeat(50_000);
    for n in 0..SAGAS {
        let saga = trial.begin_owned(first, &format!("k{n}")).await?;
        for seq in 1..=2 {
            trial.write(first, &entry(saga, 1, seq, &entries)).await?;
        }
        trial.release(first, saga, 1, DUE_NOW).await?;
        trial.deliver(&mail(saga, "m")).await?;
    }
    let mut left = SAGAS;
    for (ripe, bytes, fit) in [(Ripe::Due, 250_000, 2..=3), (Ripe::Mailed, 150_000, 1..=2), (Ripe::Due, 1, 1..=1)] {
        let claimed = trial.claim_so_much(second, ripe, Room { bytes, ..Room::of(SAGAS) }).await?;
        promise!(fit.contains(&claimed.len()), "in {bytes} bytes {} of {left} sagas of 100 kB", claimed.len());
        promise!(claimed.iter().all(|record| record.journal.len() == 2), "a record was cut");
        left -= claimed.len();
    }
    Ok(())
}

pub(super) async fn a_claim_leaves_what_lapsed_more_often_than_it_was_asked(trial: Trial) -> Verdict {
    let (first, second, third) = (trial.clerk().await?, trial.clerk().await?, trial.clerk().await?);
    let sagas = [
        trial.begin(start("never")).await?,
        trial.begin_owned(first, "once").await?,
        trial.begin_owned(first, "twice").await?,
    ];
    trial.leave(first).await?;
    trial.sweep_exactly(2).await?;
    let claimed = trial.claim_exactly(second, sagas).await?;
    for record in &claimed[..2] {
        trial.release(second, record.saga, record.epoch, DUE_NOW).await?;
    }
    trial.leave(second).await?;
    trial.sweep_exactly(1).await?;
    // What is not to be claimed is due first.
    for record in trial.claim_exactly(third, sagas).await?.iter().rev() {
        trial.release(third, record.saga, record.epoch, DUE_NOW).await?;
        trial.deliver(&mail(record.saga, "m")).await?;
    }
    for ((lapses, saga), ripe) in (0..).zip(sagas).zip([Ripe::Due, Ripe::Mailed, Ripe::Due]) {
        // Room for one: what is left takes none of it.
        let room = Room { lapses, ..Room::of(1) };
        for (ripe, promised) in [(ripe, vec![(saga, lapses)]), (Ripe::Due, vec![]), (Ripe::Mailed, vec![])] {
            let claimed = trial.claim_so_much(third, ripe, room).await?;
            let claimed: Vec<_> = claimed.iter().map(|record| (record.saga, record.lapses)).collect();
            same(&format!("(saga, lapses) of what is {ripe:?} and lapsed at most {lapses} times"), claimed, promised)?;
        }
    }
    Ok(())
}

pub(super) async fn a_snapshot_of_an_append_that_is_refused_is_not_kept(trial: Trial) -> Verdict {
    let (first, second) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(first, "k").await?;
    let then = Then::Release { due_in: DUE_NOW };
    trial.write(first, &Append { then, ..entry(saga, 1, 1, "one") }).await?;
    let record = trial.claim_one(second, saga).await?;
    let snapshot = SnapshotChange::Replace(b"a zombie's".to_vec());
    let late = trial.append(first, &[Append { snapshot, ..entry(saga, 1, 2, "late") }]).await?;
    same("an append by a former owner", &late[..], [Appended::Lost])?;
    trial.release(second, saga, record.epoch, DUE_NOW).await?;
    same("the snapshot", trial.claim_one(first, saga).await?.snapshot, None::<Snapshot>)
}

pub(super) async fn the_epoch_grows_with_every_claim(trial: Trial) -> Verdict {
    let mut worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let mut last = 1;
    for turn in 0..6 {
        match turn % 3 {
            0 => trial.release(worker, saga, last, DUE_NOW).await?,
            1 => {
                trial.leave(worker).await?;
                trial.sweep_exactly(1).await?;
                worker = trial.clerk().await?;
            }
            _ => trial.disown(worker, &[saga]).await?,
        }
        let epoch = trial.claim_one(worker, saga).await?.epoch;
        promise!(epoch > last, "the epoch was {last}, and is {epoch} after another claim");
        last = epoch;
    }
    Ok(())
}

pub(super) async fn what_is_owned_is_not_claimed_even_by_its_owner(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin(start("k")).await?;
    trial.claim_one(worker, saga).await?;
    trial.deliver(&mail(saga, "m")).await?;
    trial.nothing_to_claim(worker, "its only saga is owned").await?;
    trial.nothing_to_claim(trial.clerk().await?, "the only saga is owned").await
}

pub(super) async fn a_saga_grows_older(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin(start("k")).await?;
    let young = trial.record(saga).await?.age;
    promise!(young < Duration::from_secs(60), "a new saga is {young:?} old");
    sleep(Duration::from_millis(50)).await;
    let older = trial.claim_one(worker, saga).await?.age;
    promise!(older >= young + Duration::from_millis(40), "50 ms after it was {young:?} old, a saga is {older:?} old");
    let oldest = trial.record(saga).await?.age;
    promise!(oldest >= older, "a saga grew younger: {older:?}, then {oldest:?}");
    Ok(())
}

/// Its owner's clock goes on evenly. The store's may have been set back meanwhile.
pub(super) async fn a_saga_is_no_younger_than_its_owner_said_and_what_it_waited(trial: Trial) -> Verdict {
    let (worker, wait) = (trial.clerk().await?, Duration::from_millis(50));
    let saga = trial.begin_owned(worker, "k").await?;
    let age = Duration::from_secs(7200);
    let then = Then::Release { due_in: Some(wait) };
    trial.write(worker, &Append { then, age, ..entry(saga, 1, 1, "tried") }).await?;
    let record = trial.claim_one(worker, saga).await?;
    promise!(record.age >= age + wait, "it is {:?} old, was {age:?}, and has waited {wait:?}", record.age);
    Ok(())
}
