//! `append`: the fence, the journal, and answers that were lost.

use super::Broken;
use super::trial::{DUE_NOW, RELEASE, Trial, Verdict, WRITTEN, entry, no_entry, same, start};
use crate::{
    SagaId, WorkerId,
    machine::Status,
    store::{Append, Appended, Then},
};
use std::time::Duration;
use tokio::time::Instant;

const LOST: Appended = Appended::Lost;

pub(super) async fn entries_are_kept_in_order_and_byte_for_byte(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let entries: [&[u8]; 7] = [
        br#"[{"z" : 1,  "a":"\u0000\ud83d\ude00"}]"#,
        "é e\u{301} 😀 123456789012345678901234567890.10".as_bytes(),
        b"",
        &all_bytes,
        b"\0",
        b"[]",
        &[b'x'; 300_000],
    ];
    for (seq, bytes) in (1..).zip(entries) {
        trial.write(worker, &Append { entry: Some(bytes.into()), ..no_entry(saga, 1, seq) }).await?;
    }
    let journal = trial.record(saga).await?.journal;
    same("number of entries", journal.len(), entries.len())?;
    for (i, (kept, written)) in journal.iter().zip(entries).enumerate() {
        promise!(
            kept == written,
            "entry {} of {} bytes came back as one of {} bytes, or changed",
            i + 1,
            written.len(),
            kept.len()
        );
    }
    Ok(())
}

pub(super) async fn journals_of_many_entries_are_in_order(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let sagas = [trial.begin_owned(worker, "a").await?, trial.begin_owned(worker, "b").await?];
    let texts: Vec<String> = (1..=25).map(|seq| format!("entry {seq}")).collect();
    for (seq, text) in (1..).zip(&texts) {
        let batch = sagas.map(|saga| entry(saga, 1, seq, text));
        same("answers", &trial.append(worker, &batch).await?[..], [WRITTEN, WRITTEN])?;
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for saga in sagas {
        trial.has_journal(saga, &texts).await?;
        trial.release(worker, saga, 1, DUE_NOW).await?;
    }
    for record in trial.claim_exactly(worker, sagas).await? {
        let journal: Vec<_> = record.journal.iter().map(|entry| String::from_utf8_lossy(entry)).collect();
        same("the journal that comes with a claim", &journal[..], &texts[..])?;
    }
    Ok(())
}

pub(super) async fn a_repeated_append_is_written_once(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let first = Append { status: Some(Status::Compensating), ..entry(saga, 1, 1, "first") };
    for _ in 0..3 {
        trial.write(worker, &first).await?;
    }
    let second = Append { status: Some(Status::Parked), ..entry(saga, 1, 2, "second") };
    trial.write(worker, &second).await?;
    trial.write(worker, &first).await?;
    trial.has_journal(saga, &["first", "second"]).await?;
    same("status, which a late repetition must not turn back", trial.record(saga).await?.status, Status::Parked)
}

pub(super) async fn a_repeated_append_that_released_is_written_and_the_next_owner_undisturbed(trial: Trial) -> Verdict {
    let (worker, next) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(worker, "k").await?;
    let last = Append { then: Then::Release { due_in: DUE_NOW }, ..entry(saga, 1, 1, "last") };
    trial.write(worker, &last).await?;
    trial.write(worker, &last).await?;
    let record = trial.claim_one(next, saga).await?;
    trial.write(worker, &last).await?;
    trial.write(next, &entry(saga, record.epoch, 2, "next")).await?;
    trial.write(worker, &last).await?;
    trial.has_journal(saga, &["last", "next"]).await?;
    same("owned by the next worker", trial.owned(next).await?, [saga].into())
}

pub(super) async fn a_repeated_append_that_ended_the_saga_is_written(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let end = Append { status: Some(Status::Completed), then: RELEASE, ..entry(saga, 1, 1, "end") };
    trial.write(worker, &end).await?;
    trial.write(worker, &end).await?;
    trial.has_journal(saga, &["end"]).await
}

pub(super) async fn a_batch_of_repeated_and_new_appends_is_written_once(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let [a, b, c] = [
        trial.begin_owned(worker, "a").await?,
        trial.begin_owned(worker, "b").await?,
        trial.begin_owned(worker, "c").await?,
    ];
    let released = Append { then: RELEASE, ..entry(b, 1, 1, "b1") };
    same("answers", &trial.append(worker, &[entry(a, 1, 1, "a1"), released.clone()]).await?[..], [WRITTEN, WRITTEN])?;
    let batch = [
        entry(a, 1, 1, "a1"),
        entry(c, 1, 1, "c1"),
        released,
        Append { status: Some(Status::Parked), ..no_entry(trial.begin_owned(worker, "d").await?, 1, 1) },
        entry(SagaId::generate(), 1, 1, "nowhere"),
    ];
    let promised = [WRITTEN, WRITTEN, WRITTEN, WRITTEN, LOST];
    same("answers to repeated, new, repeated, new, unknown", &trial.append(worker, &batch).await?[..], promised)?;
    for (saga, entry) in [(a, "a1"), (b, "b1"), (c, "c1")] {
        trial.has_journal(saga, &[entry]).await?;
    }
    same("status", trial.record(batch[3].saga).await?.status, Status::Parked)
}

pub(super) async fn an_append_that_is_sent_twice_at_the_same_time_is_written_once(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    for seq in 1..=10 {
        let append = Append { status: Some(Status::Running), ..entry(saga, 1, seq, "e") };
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let (trial, append) = (trial.clone(), append.clone());
                tokio::spawn(async move { trial.append_one(worker, &append).await })
            })
            .collect();
        for sender in senders {
            same("answer", sender.await.unwrap()?, WRITTEN)?;
        }
    }
    trial.has_journal(saga, &["e"; 10]).await
}

pub(super) async fn a_place_that_another_worker_filled_is_lost(trial: Trial) -> Verdict {
    let (first, second) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(first, "k").await?;
    trial.write(first, &Append { then: Then::Release { due_in: DUE_NOW }, ..entry(saga, 1, 1, "first") }).await?;
    let epoch = trial.claim_one(second, saga).await?.epoch;
    let before = trial.record(saga).await?;
    // Even by the owner: it has not read what is there.
    let same_place = Append { status: Some(Status::Completed), then: RELEASE, ..entry(saga, epoch, 1, "first") };
    same("answer", trial.append_one(second, &same_place).await?, LOST)?;
    trial.is_unchanged(&before).await?;
    trial.write(second, &entry(saga, epoch, 2, "second")).await?;
    let late = Append { status: Some(Status::Completed), ..entry(saga, 1, 2, "second") };
    same("answer to the former owner", trial.append_one(first, &late).await?, LOST)?;
    trial.has_journal(saga, &["first", "second"]).await?;
    same("status", trial.record(saga).await?.status, Status::Running)
}

/// Appends of every shape are refused and change nothing.
async fn is_fenced_off(trial: &Trial, worker: WorkerId, saga: SagaId, epoch: i64, why: &str) -> Verdict {
    let before = trial.record(saga).await?;
    let seq = i32::try_from(before.journal.len()).unwrap() + 1;
    let shapes = [
        entry(saga, epoch, seq, "zombie"),
        no_entry(saga, epoch, seq),
        Append { status: Some(Status::Completed), ..no_entry(saga, epoch, seq) },
        Append { then: Then::Release { due_in: DUE_NOW }, ..no_entry(saga, epoch, seq) },
        Append { status: Some(Status::RolledBack), then: RELEASE, ..entry(saga, epoch, seq, "zombie") },
        Append {
            read: before.mail.iter().map(|mail| mail.message.clone()).collect(),
            ..entry(saga, epoch, seq, "zombie")
        },
    ];
    for append in shapes {
        same(&format!("answer to an append {why}"), trial.append_one(worker, &append).await?, LOST)?;
        trial.is_unchanged(&before).await?;
    }
    Ok(())
}

pub(super) async fn a_wrong_epoch_is_lost(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    for epoch in [0, 2, -1, i64::MAX] {
        is_fenced_off(&trial, worker, saga, epoch, "by the owner, at another epoch").await?;
    }
    trial.write(worker, &entry(saga, 1, 1, "first")).await
}

pub(super) async fn an_append_by_somebody_else_is_lost(trial: Trial) -> Verdict {
    let (owner, other) = (trial.clerk().await?, trial.clerk().await?);
    let owned = trial.begin_owned(owner, "k").await?;
    is_fenced_off(&trial, other, owned, 1, "by another worker, at the owner's epoch").await?;
    is_fenced_off(&trial, WorkerId::generate(), owned, 1, "by a worker that never joined").await?;
    let unowned = trial.begin(start("unowned")).await?;
    let epoch = trial.record(unowned).await?.epoch;
    is_fenced_off(&trial, other, unowned, epoch, "to a saga that nobody owns").await?;
    trial.write(owner, &entry(owned, 1, 1, "first")).await
}

pub(super) async fn an_append_to_an_unknown_saga_is_lost(trial: Trial) -> Verdict {
    let (worker, saga) = (trial.clerk().await?, SagaId::generate());
    same("answer", trial.append_one(worker, &entry(saga, 1, 1, "first")).await?, LOST)?;
    same("answer", trial.append_one(worker, &no_entry(saga, 1, 1)).await?, LOST)?;
    promise!(trial.read(saga).await?.is_none(), "an append made a saga");
    trial.begin(crate::store::Start { saga, owner: Some(worker), ..start("k") }).await?;
    trial.has_journal(saga, &[]).await
}

pub(super) async fn an_append_after_the_release_is_lost(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    trial.write(worker, &Append { then: RELEASE, ..entry(saga, 1, 1, "last") }).await?;
    is_fenced_off(&trial, worker, saga, 1, "after the release").await
}

pub(super) async fn what_a_worker_sends_under_its_former_claim_is_lost(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    trial.release(worker, saga, 1, DUE_NOW).await?;
    let epoch = trial.claim_one(worker, saga).await?.epoch;
    is_fenced_off(&trial, worker, saga, 1, "by the owner, under its former claim").await?;
    trial.write(worker, &entry(saga, epoch, 1, "first")).await
}

pub(super) async fn what_a_former_owner_sends_is_lost(trial: Trial) -> Verdict {
    let (zombie, heir) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(zombie, "k").await?;
    trial.write(zombie, &entry(saga, 1, 1, "first")).await?;
    trial.lapse(zombie).await?;
    trial.sweep_exactly(1).await?;
    is_fenced_off(&trial, zombie, saga, 1, "of a swept worker").await?;
    let epoch = trial.claim_one(heir, saga).await?.epoch;
    for guess in [1, epoch] {
        is_fenced_off(&trial, zombie, saga, guess, "of a worker that was replaced").await?;
    }
    trial.write(heir, &entry(saga, epoch, 2, "second")).await?;
    is_fenced_off(&trial, zombie, saga, 1, "of a worker that was replaced").await?;
    same("answer", trial.append_one(zombie, &entry(saga, 1, 2, "second")).await?, LOST)?;
    // What it wrote in its time stands.
    trial.write(zombie, &entry(saga, 1, 1, "first")).await?;
    trial.has_journal(saga, &["first", "second"]).await
}

/// The interleaving that a check without a lock lets through.
pub(super) async fn an_append_that_races_with_a_takeover_is_written_before_it_or_lost(trial: Trial) -> Verdict {
    const SAGAS: usize = 40;
    let (zombie, heir) = (trial.clerk().await?, trial.clerk().await?);
    let mut sagas = vec![];
    for i in 0..SAGAS {
        sagas.push(trial.begin_owned(zombie, &format!("k{i}")).await?);
    }
    let zombies: Vec<_> = (0..2)
        .map(|half| {
            let (trial, mine) = (trial.clone(), sagas.iter().copied().skip(half).step_by(2).collect::<Vec<_>>());
            tokio::spawn(async move {
                let mut answers = vec![];
                for (i, saga) in mine.into_iter().enumerate() {
                    // With a change of the row, and without.
                    let status = (i % 2 == 0).then_some(Status::Compensating);
                    let append = Append { status, ..entry(saga, 1, 1, "zombie") };
                    answers.push((append.clone(), trial.append_one(zombie, &append).await?));
                }
                Ok::<_, Broken>(answers)
            })
        })
        .collect();
    trial.leave(zombie).await?;
    let mut claimed = vec![];
    eventually!(&format!("all {SAGAS} sagas of a worker that left to be taken over, after {}", claimed.len()), {
        trial.sweep(7).await?;
        claimed.extend(trial.claim(heir, &[super::trial::order()], 5).await?);
        (claimed.len() >= SAGAS).then_some(())
    });
    let mut answers = vec![];
    for zombie in zombies {
        answers.extend(zombie.await.unwrap()?);
    }
    for (Append { saga, status, .. }, answer) in answers {
        let record =
            claimed.iter().find(|record| record.saga == saga).ok_or_else(|| Broken::new("a saga was not claimed"))?;
        let promised: (&[&str], Status) = match answer {
            Appended::Written => (&["zombie"], status.unwrap_or(Status::Running)),
            _ => (&[], Status::Running),
        };
        let entries: Vec<_> = record.journal.iter().map(|entry| String::from_utf8_lossy(entry)).collect();
        same(&format!("the journal that was claimed, of an append that is {answer:?}"), &entries[..], promised.0)?;
        same("the status that was claimed", record.status, promised.1)?;
        trial.has_journal(saga, promised.0).await?;
        same("the status", trial.record(saga).await?.status, promised.1)?;
    }
    Ok(())
}

pub(super) async fn status_and_release_take_effect_with_the_entry(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    trial.write(worker, &entry(saga, 1, 1, "a")).await?;
    same("status without a change", trial.record(saga).await?.status, Status::Running)?;
    for (seq, status) in (2..).zip([Status::Compensating, Status::Parked, Status::Running, Status::Completed]) {
        let then = if status.is_final() { RELEASE } else { Then::Keep };
        trial.write(worker, &Append { status: Some(status), then, ..entry(saga, 1, seq, "b") }).await?;
        let record = trial.record(saga).await?;
        same("(status, entries)", (record.status, record.journal.len()), (status, seq as usize))?;
        same("statuses", &trial.statuses(&[saga]).await?[..], [Some(status)])?;
        same("owned", trial.owned(worker).await?.len(), usize::from(!status.is_final()))?;
    }
    let other = trial.begin_owned(worker, "other").await?;
    trial.write(worker, &Append { status: Some(Status::RolledBack), then: RELEASE, ..entry(other, 1, 1, "b") }).await?;
    same("status", trial.record(other).await?.status, Status::RolledBack)
}

pub(super) async fn without_an_entry_only_the_row_changes(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    trial.write(worker, &no_entry(saga, 1, 1)).await?;
    trial.write(worker, &Append { status: Some(Status::Parked), ..no_entry(saga, 1, 1) }).await?;
    same("status", trial.record(saga).await?.status, Status::Parked)?;
    trial.has_journal(saga, &[]).await?;
    trial.write(worker, &entry(saga, 1, 1, "first")).await?;
    trial.release(worker, saga, 1, DUE_NOW).await?;
    trial.has_journal(saga, &["first"]).await?;
    let record = trial.claim_one(worker, saga).await?;
    same("status", record.status, Status::Parked)
}

pub(super) async fn a_refused_append_leaves_its_neighbours_written(trial: Trial) -> Verdict {
    let (worker, other) = (trial.clerk().await?, trial.clerk().await?);
    let a = trial.begin_owned(worker, "a").await?;
    let not_mine = trial.begin_owned(other, "not mine").await?;
    let released = trial.begin_owned(worker, "released").await?;
    trial.release(worker, released, 1, None).await?;
    let wrong_epoch = trial.begin_owned(worker, "wrong epoch").await?;
    let z = trial.begin_owned(worker, "z").await?;
    let batch = [
        entry(z, 1, 1, "z"),
        entry(not_mine, 1, 1, "no"),
        entry(wrong_epoch, 2, 1, "no"),
        entry(SagaId::generate(), 1, 1, "no"),
        entry(released, 1, 1, "no"),
        Append { status: Some(Status::Compensating), then: RELEASE, ..entry(a, 1, 1, "a") },
    ];
    let promised = [WRITTEN, LOST, LOST, LOST, LOST, WRITTEN];
    same("answers", &trial.append(worker, &batch).await?[..], promised)?;
    trial.has_journal(a, &["a"]).await?;
    trial.has_journal(z, &["z"]).await?;
    same("status", trial.record(a).await?.status, Status::Compensating)?;
    for saga in [not_mine, wrong_epoch, released] {
        trial.has_journal(saga, &[]).await?;
    }
    same("owned", trial.owned(worker).await?, [z, wrong_epoch].into())?;
    same("answers to nothing", trial.append(worker, &[]).await?.len(), 0)
}

pub(super) async fn a_released_saga_is_claimable_when_it_is_due_and_not_before(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let (soon, now) = (trial.begin_owned(worker, "soon").await?, trial.begin_owned(worker, "now").await?);
    let due_in = Duration::from_millis(300);
    let before = Instant::now();
    let later = Append { then: Then::Release { due_in: Some(due_in) }, ..entry(soon, 1, 1, "later") };
    trial.write(worker, &later).await?;
    trial.release(worker, now, 1, DUE_NOW).await?;
    let first = trial.claim(worker, &[super::trial::order()], 1).await?;
    promise!(
        before.elapsed() >= due_in || first.iter().map(|record| record.saga).eq([now]),
        "of two sagas, one due at once and one in {due_in:?}, {first:?} could be claimed"
    );
    if first.iter().any(|record| record.saga == soon) {
        return Ok(()); // The machine is too slow to tell.
    }
    trial.claim_one(worker, soon).await?;
    // Two clocks may differ a little over such a time.
    let after = before.elapsed() + Duration::from_millis(15);
    promise!(after >= due_in, "a saga that is due in {due_in:?} could be claimed after {after:?}");
    Ok(())
}

pub(super) async fn a_saga_that_was_released_for_good_is_not_claimable(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let parked = trial.begin_owned(worker, "parked").await?;
    trial.write(worker, &Append { status: Some(Status::Parked), then: RELEASE, ..entry(parked, 1, 1, "p") }).await?;
    let forgotten = trial.begin_owned(worker, "forgotten").await?;
    trial.release(worker, forgotten, 1, None).await?;
    let for_ever = trial.begin_owned(worker, "for ever").await?;
    trial.release(worker, for_ever, 1, Some(Duration::MAX)).await?;
    trial.nothing_to_claim(worker, "what was released waits for mail, or for an eternity").await?;
    trial.leave(worker).await?;
    trial.sweep_exactly(0).await?;
    trial.nothing_to_claim(trial.clerk().await?, "a sweep has no business with what nobody owns").await
}

pub(super) async fn an_ended_saga_is_not_claimable_even_with_mail(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    for (key, status) in [("completed", Status::Completed), ("rolled back", Status::RolledBack)] {
        let saga = trial.begin_owned(worker, key).await?;
        trial.deliver(&super::trial::mail(saga, "unread")).await?;
        trial.write(worker, &Append { status: Some(status), then: RELEASE, ..entry(saga, 1, 1, "end") }).await?;
        trial.post(&[super::trial::mail(saga, "unread"), super::trial::mail(saga, "late")]).await?;
    }
    trial.nothing_to_claim(worker, "the sagas have ended").await?;
    trial.sweep_exactly(0).await?;
    trial.nothing_to_claim(worker, "the sagas have ended").await
}
