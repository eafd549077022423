//! Workers and their leases: `join`, `beat`, `leave`, `sweep`, `owned`, `disown`.

use super::Broken;
use super::trial::{DUE_NOW, LONG, Trial, Verdict, entry, mail, order, same, start};
use crate::{
    SagaId, WorkerId,
    store::{Append, Appended, Then},
};
use std::{collections::HashSet, time::Duration};
use tokio::time::{Instant, sleep};

pub(super) async fn a_worker_that_beats_in_time_lives(trial: Trial) -> Verdict {
    let mut lease = Duration::from_millis(150);
    loop {
        let worker = WorkerId::generate();
        let mut since = Instant::now();
        trial.join(worker, lease, &[order()]).await?;
        let saga = trial.begin_owned(worker, &format!("k{lease:?}")).await?;
        let mut in_time = true;
        for _ in 0..6 {
            sleep(lease / 3).await;
            let sent = Instant::now();
            let alive = trial.beat(worker, lease).await?;
            in_time &= since.elapsed() < lease;
            promise!(
                alive || !in_time,
                "a worker with a lease of {lease:?} beat after {:?}, and was told that it lapsed",
                since.elapsed()
            );
            since = sent;
        }
        let swept = trial.sweep(10).await?;
        in_time &= since.elapsed() < lease;
        if in_time {
            same("sagas of a living worker that were swept", swept, 0)?;
            return same("what a living worker owns", trial.owned(worker).await?, [saga].into());
        }
        // This machine is slow at the moment: more time shows the same.
        lease *= 2;
        promise!(lease < Duration::from_secs(5), "no beat came through in time");
        trial.leave(worker).await?;
        trial.sweep_exactly(usize::from(!trial.owned(worker).await?.is_empty())).await?;
    }
}

pub(super) async fn a_lease_lapses_by_itself_and_never_comes_back(trial: Trial) -> Verdict {
    let worker = WorkerId::generate();
    trial.join(worker, Duration::from_millis(200), &[order()]).await?;
    let saga = trial.begin_owned(worker, "k").await?;
    eventually!("a lease of 200 ms to lapse", (trial.sweep(10).await? == 1).then_some(()));
    for _ in 0..3 {
        promise!(!trial.beat(worker, LONG).await?, "a worker came back after its sagas were swept");
    }
    let record = trial.claim_one(trial.clerk().await?, saga).await?;
    same("lapses", record.lapses, 1)
}

/// A beat may come late, and may be counted as one of a worker that lives. What was swept stays so.
pub(super) async fn a_beat_revives_nobody_who_was_swept(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    trial.begin_owned(worker, "k").await?;
    trial.lapse(worker).await?;
    trial.sweep_exactly(1).await?;
    for _ in 0..3 {
        promise!(!trial.beat(worker, LONG).await?, "a beat revived a worker that was swept");
    }
    trial.sweep_exactly(0).await
}

pub(super) async fn a_lapse_is_survived_by_a_worker_that_comes_back(trial: Trial) -> Verdict {
    let (silent, dead, heir) = (trial.clerk().await?, trial.clerk().await?, trial.clerk().await?);
    let [swept, unswept] = [trial.begin_owned(silent, "swept").await?, trial.begin_owned(dead, "unswept").await?];
    // It was counted as a death, by a sweep that came first.
    trial.leave(silent).await?;
    trial.sweep_exactly(1).await?;
    let record = trial.claim_one(heir, swept).await?;
    same("(lapses, survived)", (record.lapses, &record.survived[..]), (1, &[][..]))?;
    for _ in 0..2 {
        trial.returned(silent).await?;
    }
    // Its heir goes on with it.
    trial.write(heir, &entry(swept, record.epoch, 1, "first")).await?;
    same(
        "(lapses, survived)",
        {
            let r = trial.record(swept).await?;
            (r.lapses, r.survived)
        },
        (1, vec![1]),
    )?;
    // The next one dies, and the one after that comes back before any sweep.
    trial.leave(heir).await?;
    trial.sweep_exactly(1).await?;
    let next = trial.clerk().await?;
    let record = trial.claim_one(next, swept).await?;
    same("(lapses, survived)", (record.lapses, &record.survived[..]), (2, &[1][..]))?;
    trial.returned(next).await?;
    let late = trial.append_one(next, &entry(swept, record.epoch, 2, "late")).await?;
    same("answer to an append of a claim that was given up", late, Appended::Lost)?;
    promise!(!trial.beat(next, LONG).await?, "a worker lives that came back under another name");
    let record = trial.claim_one(trial.clerk().await?, swept).await?;
    same("(lapses, survived)", (record.lapses, &record.survived[..]), (3, &[1, 3][..]))?;
    same("what a worker owns that nobody spoke of", trial.owned(dead).await?, [unswept].into())
}

pub(super) async fn a_beat_of_nobody_is_false(trial: Trial) -> Verdict {
    promise!(
        !trial.beat(WorkerId::generate(), LONG).await?,
        "the beat of a worker that never joined was answered with true"
    );
    let left = trial.clerk().await?;
    trial.leave(left).await?;
    trial.leave(left).await?;
    promise!(!trial.beat(left, LONG).await?, "the beat of a worker that left was answered with true");
    Ok(())
}

pub(super) async fn a_repeated_join_is_one(trial: Trial) -> Verdict {
    let worker = WorkerId::generate();
    for _ in 0..2 {
        trial.join(worker, LONG, &[order()]).await?;
    }
    promise!(trial.beat(worker, LONG).await?, "a worker that joined twice does not live");
    let nobody = trial.worker(&[]).await?;
    promise!(trial.beat(nobody, LONG).await?, "a worker without definitions does not live");
    Ok(())
}

pub(super) async fn a_sweep_frees_what_lapsed_workers_owned_and_nothing_else(trial: Trial) -> Verdict {
    let (lapsed, left, living) = (trial.clerk().await?, trial.clerk().await?, trial.clerk().await?);
    let mut sagas = vec![];
    for (worker, key) in [(lapsed, "a"), (lapsed, "b"), (left, "c"), (left, "d"), (living, "e"), (living, "f")] {
        sagas.push(trial.begin_owned(worker, key).await?);
    }
    // What is not owned any more when its worker is lost is none of the sweep's business.
    let released = trial.begin_owned(lapsed, "released").await?;
    trial.release(lapsed, released, 1, Some(LONG)).await?;
    trial.lapse(lapsed).await?;
    trial.leave(left).await?;
    trial.sweep_exactly(4).await?;
    promise!(trial.owned(lapsed).await?.is_empty(), "a lapsed worker owns sagas after the sweep");
    promise!(trial.owned(left).await?.is_empty(), "a worker that left owns sagas after the sweep");
    same(
        "what the living worker owns",
        trial.owned(living).await?,
        sagas[4..].iter().copied().collect::<HashSet<_>>(),
    )?;
    for saga in &sagas[4..] {
        same("lapses of a living worker's saga", trial.record(*saga).await?.lapses, 0)?;
        trial.write(living, &entry(*saga, 1, 1, "alive")).await?;
    }
    same("lapses of a released saga", trial.record(released).await?.lapses, 0)?;
    let claimed = trial.claim_exactly(living, [sagas[0], sagas[1], sagas[2], sagas[3]]).await?;
    for record in claimed {
        same("lapses", record.lapses, 1)?;
        promise!(record.epoch > 1, "the epoch did not grow over a lapse and a claim: {}", record.epoch);
    }
    trial.sweep_exactly(0).await
}

pub(super) async fn every_lapse_is_counted_once(trial: Trial) -> Verdict {
    let mut worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    for lapses in 1..=3 {
        trial.leave(worker).await?;
        trial.sweep_exactly(1).await?;
        trial.sweep_exactly(0).await?;
        worker = trial.clerk().await?;
        same("lapses", trial.claim_one(worker, saga).await?.lapses, lapses)?;
    }
    trial.release(worker, saga, trial.record(saga).await?.epoch, DUE_NOW).await?;
    same("lapses after a release", trial.claim_one(worker, saga).await?.lapses, 3)
}

pub(super) async fn sweeps_at_the_same_time_count_one_lapse(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let mut sagas = vec![];
    for i in 0..20 {
        sagas.push(trial.begin_owned(worker, &format!("k{i}")).await?);
    }
    trial.leave(worker).await?;
    let sweepers: Vec<_> = (0..4)
        .map(|_| {
            let trial = trial.clone();
            tokio::spawn(async move { Ok::<_, Broken>(trial.sweep(6).await? + trial.sweep(6).await?) })
        })
        .collect();
    let mut swept = 0;
    for sweeper in sweepers {
        swept += sweeper.await.unwrap()?;
    }
    eventually!("the rest to be swept", {
        swept += trial.sweep(6).await?;
        (swept >= sagas.len()).then_some(())
    });
    same("sagas that were swept", swept, sagas.len())?;
    for saga in sagas {
        same("lapses", trial.record(saga).await?.lapses, 1)?;
    }
    Ok(())
}

pub(super) async fn a_sweep_keeps_to_its_limit(trial: Trial) -> Verdict {
    let (worker, heir) = (trial.clerk().await?, trial.clerk().await?);
    for i in 0..5 {
        trial.begin_owned(worker, &format!("k{i}")).await?;
    }
    trial.leave(worker).await?;
    for (swept, left) in [(2, 3), (2, 1), (1, 0), (0, 0)] {
        same("sagas in a sweep of at most 2", trial.sweep(2).await?, swept)?;
        same("sagas that are left to sweep", trial.owned(worker).await?.len(), left)?;
    }
    same("sagas that are due", trial.claim(heir, &[order()], 10).await?.len(), 5)
}

pub(super) async fn a_swept_saga_brings_its_journal_and_its_unread_mail(trial: Trial) -> Verdict {
    let (worker, heir) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(worker, "k").await?;
    for message in ["read", "unread"] {
        trial.deliver(&mail(saga, message)).await?;
    }
    trial.write(worker, &Append { read: vec!["read".into()], ..entry(saga, 1, 1, "first") }).await?;
    trial.leave(worker).await?;
    trial.sweep_exactly(1).await?;
    let record = trial.claim_one(heir, saga).await?;
    same("journal", &record.journal[..], [b"first".to_vec()])?;
    same("mail", &record.mail[..], [mail(saga, "unread")])?;
    trial.write(heir, &entry(saga, record.epoch, 2, "second")).await?;
    trial.has_journal(saga, &["first", "second"]).await
}

pub(super) async fn what_a_worker_owns_can_be_listed(trial: Trial) -> Verdict {
    let (worker, other) = (trial.clerk().await?, trial.clerk().await?);
    same("owned", trial.owned(worker).await?, HashSet::<SagaId>::new())?;
    let started = trial.begin_owned(worker, "started").await?;
    let released = trial.begin_owned(worker, "released").await?;
    let ended = trial.begin_owned(worker, "ended").await?;
    trial.begin_owned(other, "other").await?;
    trial.begin(start("claimed")).await?;
    let claimed = trial.claim(worker, &[order()], 1).await?;
    same("claimed", claimed.len(), 1)?;
    trial.release(worker, released, 1, None).await?;
    let status = Some(crate::machine::Status::Completed);
    let then = Then::Release { due_in: None };
    trial.write(worker, &Append { status, then, ..entry(ended, 1, 1, "end") }).await?;
    same("owned", trial.owned(worker).await?, [started, claimed[0].saga].into())
}

pub(super) async fn a_disowned_saga_is_due_at_once_without_a_lapse(trial: Trial) -> Verdict {
    let (worker, heir) = (trial.clerk().await?, trial.clerk().await?);
    let [given, kept] = [trial.begin_owned(worker, "given").await?, trial.begin_owned(worker, "kept").await?];
    trial.write(worker, &entry(given, 1, 1, "first")).await?;
    trial.disown(worker, &[given]).await?;
    trial.disown(worker, &[given]).await?;
    same("owned", trial.owned(worker).await?, [kept].into())?;
    let late = trial.append_one(worker, &entry(given, 1, 2, "late")).await?;
    same("answer to an append of who disowned the saga", late, Appended::Lost)?;
    let record = trial.claim_one(heir, given).await?;
    same("lapses", record.lapses, 0)?;
    promise!(record.epoch > 1, "the epoch did not grow over a disown and a claim: {}", record.epoch);
    let late = trial.append_one(worker, &entry(given, 1, 2, "late")).await?;
    same("answer to an append of who disowned the saga", late, Appended::Lost)?;
    trial.has_journal(given, &["first"]).await?;
    trial.write(heir, &entry(given, record.epoch, 2, "second")).await?;
    trial.write(worker, &entry(kept, 1, 1, "first")).await
}

/// The worker that disowned may be the next to claim: its late appends are no better for that.
pub(super) async fn a_disowned_saga_that_its_worker_claims_again_has_another_epoch(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    trial.disown(worker, &[saga]).await?;
    let epoch = trial.claim_one(worker, saga).await?.epoch;
    same("answer", trial.append_one(worker, &entry(saga, 1, 1, "late")).await?, Appended::Lost)?;
    trial.write(worker, &entry(saga, epoch, 1, "first")).await
}

/// It was sent for a claim that is over; the same worker owns the saga again, and knows it.
pub(super) async fn a_disown_that_comes_late_takes_no_saga_from_a_later_claim(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    trial.disown_at(worker, &[(saga, 1)]).await?;
    let epoch = trial.claim_one(worker, saga).await?.epoch;
    trial.disown_at(worker, &[(saga, 1)]).await?;
    same("owned", trial.owned(worker).await?, [saga].into())?;
    trial.write(worker, &entry(saga, epoch, 1, "first")).await
}

pub(super) async fn only_what_a_worker_owns_is_disowned(trial: Trial) -> Verdict {
    let (worker, other) = (trial.clerk().await?, trial.clerk().await?);
    let others = trial.begin_owned(other, "others").await?;
    let asleep = trial.begin_owned(worker, "asleep").await?;
    trial.release(worker, asleep, 1, Some(LONG)).await?;
    let ended = trial.begin_owned(worker, "ended").await?;
    let status = Some(crate::machine::Status::RolledBack);
    let then = Then::Release { due_in: None };
    trial.write(worker, &Append { status, then, ..entry(ended, 1, 1, "end") }).await?;
    trial.disown(worker, &[others, asleep, ended, SagaId::generate()]).await?;
    trial.disown(worker, &[]).await?;
    trial.nothing_to_claim(worker, "nothing was owned that could be disowned").await?;
    same("what the other worker owns", trial.owned(other).await?, [others].into())?;
    trial.write(other, &entry(others, 1, 1, "still mine")).await
}
