//! `post` and `mail`: once by id, to the owner, until it is folded.

use super::trial::{DUE_NOW, LONG, RELEASE, Trial, Verdict, WRITTEN, entry, mail, no_entry, order, same, start};
use super::{Broken, StoreError};
use crate::{
    SagaId,
    machine::Status,
    store::{Append, Appended, Mail, Posted, Then},
};
use std::{collections::HashSet, time::Duration};

const ACCEPTED: Posted = Posted::Accepted;

fn reading(append: Append, messages: &[&str]) -> Append {
    Append { read: messages.iter().map(|message| (*message).into()).collect(), ..append }
}

pub(super) async fn mail_is_fetched_by_the_owner_alone_and_in_order(trial: Trial) -> Verdict {
    let (owner, other, third) = (trial.clerk().await?, trial.clerk().await?, trial.clerk().await?);
    let (saga, second) = (trial.begin_owned(owner, "k").await?, trial.begin_owned(owner, "second").await?);
    let thirds = trial.begin_owned(third, "third").await?;
    let others = trial.begin_owned(other, "other").await?;
    let unowned = trial.begin(start("unowned")).await?;
    // Neither in the order of their ids nor in that of the sagas.
    let batch = [mail(second, "m5"), mail(others, "m1"), mail(saga, "m9"), mail(unowned, "m1"), mail(saga, "m1")];
    same("answers", &trial.post(&batch).await?[..], [ACCEPTED; 5])?;
    trial.deliver(&mail(second, "m0")).await?;
    trial.deliver(&mail(saga, "m5")).await?;
    let promised = [mail(second, "m5"), mail(saga, "m9"), mail(saga, "m1"), mail(second, "m0"), mail(saga, "m5")];
    for _ in 0..2 {
        trial.has_mail(owner, &promised).await?;
    }
    trial.has_mail(other, &[mail(others, "m1")]).await?;
    let batch = ["m3", "m1", "m2"].map(|message| mail(thirds, message));
    same("answers", &trial.post(&batch).await?[..], [ACCEPTED; 3])?;
    same("the first two messages", &trial.mail(third, 2).await?[..], &batch[..2])?;
    same(
        "the mail in the saga's record",
        &trial.record(saga).await?.mail[..],
        [mail(saga, "m9"), mail(saga, "m1"), mail(saga, "m5")],
    )?;
    trial.release(owner, saga, 1, Some(LONG)).await?;
    trial.has_mail(owner, &[mail(second, "m5"), mail(second, "m0")]).await
}

pub(super) async fn a_saga_with_much_mail_keeps_no_other_from_its_own(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let (busy, quiet) = (trial.begin_owned(worker, "busy").await?, trial.begin_owned(worker, "quiet").await?);
    for n in 0..20 {
        trial.deliver(&mail(busy, &format!("m{n}"))).await?;
    }
    trial.deliver(&mail(quiet, "m")).await?;
    let fetched = trial.mail(worker, 10).await?;
    same("the number of messages", fetched.len(), 10)?;
    promise!(fetched.contains(&mail(quiet, "m")), "nothing for the other saga among {fetched:?}");
    let first: Vec<_> = (0..9).map(|n| mail(busy, &format!("m{n}"))).collect();
    let of_the_busy: Vec<_> = fetched.into_iter().filter(|mail| mail.saga == busy).collect();
    same("the oldest of the other's", &of_the_busy[..], &first[..])
}

pub(super) async fn a_repeated_message_is_accepted_and_delivered_once(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let (saga, other) = (trial.begin_owned(worker, "k").await?, trial.begin_owned(worker, "other").await?);
    let repeated = Mail { body: b"another body".into(), ..mail(saga, "m") };
    trial.deliver(&mail(saga, "m")).await?;
    trial.deliver(&repeated).await?;
    same(
        "answers in one batch",
        &trial.post(&[mail(saga, "n"), mail(saga, "n"), mail(saga, "m")]).await?[..],
        [ACCEPTED; 3],
    )?;
    // The same id, but of another saga.
    trial.deliver(&mail(other, "m")).await?;
    trial.has_mail(worker, &[mail(saga, "m"), mail(saga, "n"), mail(other, "m")]).await?;
    trial.write(worker, &reading(entry(saga, 1, 1, "e"), &["m", "n"])).await?;
    trial.deliver(&repeated).await?;
    trial.has_mail(worker, &[mail(other, "m")]).await?;
    trial.release(worker, saga, 1, None).await?;
    trial.deliver(&repeated).await?;
    trial.nothing_to_claim(worker, "the only message was read before").await
}

pub(super) async fn a_message_that_is_posted_twice_at_the_same_time_is_delivered_once(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let messages: Vec<Mail> = (0..10).map(|i| mail(saga, &format!("m{i}"))).collect();
    let senders: Vec<_> = (0..4)
        .map(|_| {
            let (trial, messages) = (trial.clone(), messages.clone());
            tokio::spawn(async move {
                for message in &messages {
                    trial.deliver(message).await?;
                }
                Ok::<_, Broken>(())
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap()?;
    }
    trial.has_mail(worker, &messages).await
}

pub(super) async fn a_message_is_read_by_the_append_that_folds_it(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let (saga, other) = (trial.begin_owned(worker, "k").await?, trial.begin_owned(worker, "other").await?);
    let batch: Vec<Mail> = ["a", "b", "c", "d"].into_iter().flat_map(|m| [mail(saga, m), mail(other, m)]).collect();
    same("answers", &trial.post(&batch).await?[..], [ACCEPTED; 8])?;
    trial.write(worker, &entry(saga, 1, 1, "reads nothing")).await?;
    trial.has_mail(worker, &batch).await?;
    trial.write(worker, &reading(entry(saga, 1, 2, "reads two, and one that never came"), &["c", "a", "x"])).await?;
    let promised =
        [mail(other, "a"), mail(saga, "b"), mail(other, "b"), mail(other, "c"), mail(saga, "d"), mail(other, "d")];
    trial.has_mail(worker, &promised).await?;
    // Without an entry as well, and together with others.
    let batch = [
        reading(no_entry(saga, 1, 3), &["b"]),
        reading(Append { status: Some(Status::Parked), then: RELEASE, ..entry(other, 1, 1, "e") }, &["d", "c"]),
    ];
    same("answers", &trial.append(worker, &batch).await?[..], [WRITTEN, WRITTEN])?;
    trial.has_mail(worker, &[mail(saga, "d")]).await?;
    let record = trial.claim_one(worker, other).await?;
    same("mail that comes with a claim", &record.mail[..], [mail(other, "a"), mail(other, "b")])
}

pub(super) async fn a_lost_append_reads_nothing(trial: Trial) -> Verdict {
    let (owner, other) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(owner, "k").await?;
    let neighbour = trial.begin_owned(other, "neighbour").await?;
    same("answers", &trial.post(&[mail(saga, "m"), mail(neighbour, "m")]).await?[..], [ACCEPTED; 2])?;
    let batch = [reading(entry(saga, 1, 1, "no"), &["m"]), reading(entry(neighbour, 1, 1, "yes"), &["m"])];
    same("answers", &trial.append(other, &batch).await?[..], [Appended::Lost, WRITTEN])?;
    let late = [reading(entry(saga, 2, 1, "no"), &["m"]), reading(no_entry(saga, 0, 1), &["m"])];
    for append in late {
        same("answer", trial.append_one(owner, &append).await?, Appended::Lost)?;
    }
    trial.has_mail(owner, &[mail(saga, "m")]).await?;
    trial.has_mail(other, &[]).await?;
    trial.release(owner, saga, 1, None).await?;
    let after = reading(entry(saga, 1, 1, "no"), &["m"]);
    same("answer", trial.append_one(owner, &after).await?, Appended::Lost)?;
    same("mail", &trial.claim_one(other, saga).await?.mail[..], [mail(saga, "m")])
}

pub(super) async fn mail_makes_an_unowned_saga_claimable(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let mut sagas = vec![];
    for (key, status, due_in) in [
        ("parked", Status::Parked, None),
        ("waiting", Status::Running, None),
        ("asleep", Status::Compensating, Some(LONG)),
        ("for ever", Status::Running, Some(Duration::MAX)),
    ] {
        let saga = trial.begin_owned(worker, key).await?;
        let then = Then::Release { due_in };
        trial.write(worker, &Append { status: Some(status), then, ..entry(saga, 1, 1, key) }).await?;
        sagas.push((saga, status));
    }
    trial.nothing_to_claim(worker, "there is no mail yet").await?;
    for (saga, status) in &sagas {
        same("answers", &trial.post(&[mail(*saga, "m1"), mail(*saga, "m2")]).await?[..], [ACCEPTED; 2])?;
        let record = trial.claim_one(worker, *saga).await?;
        same("status", record.status, *status)?;
        same("mail", &record.mail[..], [mail(*saga, "m1"), mail(*saga, "m2")])?;
        trial.has_mail(worker, &record.mail).await?;
        trial
            .write(worker, &Append { then: RELEASE, ..reading(entry(*saga, record.epoch, 2, "e"), &["m1", "m2"]) })
            .await?;
        trial.nothing_to_claim(worker, "all mail was read").await?;
    }
    Ok(())
}

pub(super) async fn mail_does_not_steal_an_owned_saga(trial: Trial) -> Verdict {
    let (owner, other) = (trial.clerk().await?, trial.clerk().await?);
    let saga = trial.begin_owned(owner, "k").await?;
    trial.deliver(&mail(saga, "m")).await?;
    trial.nothing_to_claim(other, "the saga with mail has an owner").await?;
    same("lapses, epoch", (trial.record(saga).await?.lapses, trial.record(saga).await?.epoch), (0, 1))?;
    trial.write(owner, &entry(saga, 1, 1, "mine")).await
}

/// A release that trusts an earlier look into the mailbox would lose it.
pub(super) async fn mail_that_comes_while_its_saga_is_released_is_found(trial: Trial) -> Verdict {
    const SAGAS: usize = 30;
    let worker = trial.clerk().await?;
    let mut sagas = vec![];
    for i in 0..SAGAS {
        sagas.push(trial.begin_owned(worker, &format!("k{i}")).await?);
    }
    let (poster, posted) = (trial.clone(), sagas.clone());
    let posting = tokio::spawn(async move {
        for saga in posted {
            poster.deliver(&mail(saga, "m")).await?;
        }
        Ok::<_, Broken>(())
    });
    for saga in &sagas {
        trial.release(worker, *saga, 1, None).await?;
    }
    posting.await.unwrap()?;
    let mut claimed = HashSet::new();
    eventually!("sagas whose mail came while they were released to be claimed", {
        for record in trial.claim(worker, &[order()], SAGAS).await? {
            same("mail", &record.mail[..], [mail(record.saga, "m")])?;
            claimed.insert(record.saga);
        }
        (claimed.len() == SAGAS).then_some(())
    });
    Ok(())
}

pub(super) async fn mail_to_an_ended_or_unknown_saga_is_refused(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let [done, undone, runs] = [
        trial.begin_owned(worker, "done").await?,
        trial.begin_owned(worker, "undone").await?,
        trial.begin(start("runs")).await?,
    ];
    trial.deliver(&mail(done, "before")).await?;
    for (saga, status, read) in [(done, Status::Completed, vec!["before"]), (undone, Status::RolledBack, vec![])] {
        let end = Append { status: Some(status), then: RELEASE, ..entry(saga, 1, 1, "end") };
        trial.write(worker, &reading(end, &read)).await?;
    }
    let batch = [
        mail(SagaId::generate(), "m"),
        mail(done, "after"),
        mail(runs, "m"),
        mail(undone, "before"),
        mail(done, "before"),
        mail(SagaId::generate(), "before"),
    ];
    let (ended, unknown) = (Posted::Ended, Posted::NoSuchSaga);
    let promised = [unknown, ended, ACCEPTED, ended, ACCEPTED, unknown];
    for _ in 0..2 {
        let answers = trial.post(&batch).await?;
        same(
            "answers to mail to unknown, ended, running, ended, ended (but read before), unknown",
            &answers[..],
            promised,
        )?;
    }
    same("answers to nothing", trial.post(&[]).await?.len(), 0)?;
    same("mail", &trial.claim_one(worker, runs).await?.mail[..], [mail(runs, "m")])
}

pub(super) async fn mail_to_an_unknown_saga_leaves_nothing_behind(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = SagaId::generate();
    same("answer", &trial.post(&[mail(saga, "m")]).await?[..], [Posted::NoSuchSaga])?;
    trial.begin(crate::store::Start { saga, ..start("k") }).await?;
    let record = trial.claim_one(worker, saga).await?;
    same("mail from before the saga was started", record.mail, vec![])?;
    trial.deliver(&mail(saga, "m")).await?;
    trial.has_mail(worker, &[mail(saga, "m")]).await
}

pub(super) async fn odd_messages_survive_byte_for_byte(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let ids = ["m", "M", "m ", "", "é", "e\u{301}", "'\"\\%_$1{}", "😀", "a\nb"];
    let bodies: [&[u8]; 9] = [
        b"",
        b"\0\xff\xfe",
        br#"{ "a":"\u0000" ,"a":1E400}"#,
        "é😀".as_bytes(),
        b"null",
        &[7; 100_000],
        b"\\x41",
        b"{}",
        b" ",
    ];
    let batch: Vec<Mail> =
        ids.into_iter().zip(bodies).map(|(id, body)| Mail { saga, message: id.into(), body: body.into() }).collect();
    same("answers", &trial.post(&batch).await?[..], [ACCEPTED; 9])?;
    trial.has_mail(worker, &batch).await?;
    trial.write(worker, &reading(no_entry(saga, 1, 1), &["M", "e\u{301}", ""])).await?;
    let left = ["m", "m ", "é", "'\"\\%_$1{}", "😀", "a\nb"];
    let left: Vec<Mail> = batch.into_iter().filter(|mail| left.contains(&mail.message.as_str())).collect();
    trial.has_mail(worker, &left).await
}

/// What a store may refuse: an id with a NUL, and one that is far too long for an index.
pub(super) async fn a_message_that_is_refused_is_rejected_with_its_whole_batch(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let mut chance = fastrand::Rng::with_seed(7);
    let long: String = (0..100_000).map(|_| chance.alphanumeric()).collect();
    let mut promised = vec![];
    for (i, odd) in ["a\0b", &long].into_iter().enumerate() {
        let batch = [mail(saga, &format!("before {i}")), mail(saga, odd), mail(saga, &format!("after {i}"))];
        match trial.store().post(&batch).await {
            Ok(answers) => {
                same("answers", &answers[..], [ACCEPTED; 3])?;
                promised.extend(batch);
            }
            Err(StoreError::Rejected(_)) => {}
            Err(error) => {
                let why = "It would be sent again for ever";
                return Err(Broken::new(format!("an odd message is neither taken nor `Rejected`: {error}. {why}")));
            }
        }
        // Nothing of a batch that was rejected, and all of another.
        trial.has_mail(worker, &promised).await?;
    }
    trial.release(worker, saga, 1, DUE_NOW).await
}
