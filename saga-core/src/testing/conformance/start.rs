//! `start`: once by id, once by key.

use super::trial::{LONG, Trial, Verdict, entry, json, no_entry, order, same, start};
use super::{Broken, StoreError};
use crate::{
    SagaId, WorkerId,
    machine::Status,
    store::{Append, Start, Started},
};
use futures::future::join_all;
use std::collections::HashMap;

const fn existing(saga: SagaId, same_input: bool) -> Started {
    Started::Existing { saga, same_input }
}

pub(super) async fn a_new_saga_runs_with_what_it_was_started_with(trial: Trial) -> Verdict {
    let start = Start { name: "invoice".into(), version: 3, ..start("k") };
    trial.begin(start.clone()).await?;
    let record = trial.record(start.saga).await?;
    same("saga", record.saga, start.saga)?;
    same("name", &record.name, &start.name)?;
    same("version", record.version, start.version)?;
    same("key", &record.key, &start.key)?;
    same("input", &record.input, &start.input)?;
    same("status", record.status, Status::Running)?;
    same("lapses", record.lapses, 0)?;
    same("journal", record.journal.len(), 0)?;
    same("mail", record.mail.len(), 0)
}

pub(super) async fn a_repeated_start_is_new_again(trial: Trial) -> Verdict {
    let first = start("k");
    trial.begin(first.clone()).await?;
    trial.begin(first).await?;
    let owned = Start { owner: Some(trial.clerk().await?), ..start("owned") };
    trial.begin(owned.clone()).await?;
    trial.begin(owned.clone()).await?;
    same("epoch after the repetition", trial.record(owned.saga).await?.epoch, 1)
}

pub(super) async fn a_repeated_start_changes_nothing_of_a_saga_that_went_on(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let start = Start { owner: Some(worker), ..start("k") };
    let saga = trial.begin(start.clone()).await?;
    let end = Append { status: Some(Status::Completed), then: super::trial::RELEASE, ..entry(saga, 1, 1, "end") };
    trial.write(worker, &end).await?;
    trial.begin(start).await?;
    same("status", trial.record(saga).await?.status, Status::Completed)?;
    trial.has_journal(saga, &["end"]).await?;
    promise!(trial.owned(worker).await?.is_empty(), "a repeated start gave an ended saga an owner");
    trial.nothing_to_claim(worker, "a saga ended before its start was repeated").await
}

pub(super) async fn a_key_is_taken_once(trial: Trial) -> Verdict {
    let first = start("k");
    trial.begin(first.clone()).await?;
    let other = Start { input: json(r#"{"item":8}"#), ..start("k") };
    let spaced = Start { input: json(r#"{ "item": 7 }"#), ..start("k") };
    let newer = Start { version: 2, ..start("k") };
    let answers = trial.start(&[start("k"), other.clone(), spaced, newer]).await?;
    let promised = [true, false, false, true].map(|same_input| existing(first.saga, same_input));
    same(
        "answers to the same input, another one, another text of the same one, another version",
        &answers[..],
        promised,
    )?;
    same("what became of a refused start", trial.read(other.saga).await?.map(|record| record.saga), None)?;
    same("the input", trial.record(first.saga).await?.input, first.input)
}

pub(super) async fn a_key_stays_taken_when_its_saga_has_ended(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let end = Append { status: Some(Status::RolledBack), then: super::trial::RELEASE, ..entry(saga, 1, 1, "end") };
    trial.write(worker, &end).await?;
    same("answer", &trial.start(&[start("k")]).await?[..], [existing(saga, true)])
}

pub(super) async fn the_same_key_under_another_name_is_another_key(trial: Trial) -> Verdict {
    let saga = trial.begin(start("k")).await?;
    let invoice = trial.begin(Start { name: "invoice".into(), ..start("k") }).await?;
    same("found", trial.find("order", "k").await?, Some(saga))?;
    same("found", trial.find("invoice", "k").await?, Some(invoice))
}

pub(super) async fn keys_are_compared_byte_for_byte(trial: Trial) -> Verdict {
    // Case, spaces, composed and decomposed letters, quotes, wildcards, what looks like SQL: to a collation some of them are the same.
    let keys =
        ["k", "K", "k ", " k", "", "é", "e\u{301}", "ß", "ss", "'k'", "\"k\"", "k%", "k_", "\\k", "k;--", "😀", "k\n"];
    let batch: Vec<Start> = keys.into_iter().map(start).collect();
    promise!(
        trial.start(&batch).await?.iter().all(|answer| *answer == Started::New),
        "some of the different keys {keys:?} were taken for the same"
    );
    for start in batch {
        same(&format!("found by {:?}", start.key), trial.find("order", &start.key).await?, Some(start.saga))?;
        same("key", trial.record(start.saga).await?.key, start.key)?;
    }
    Ok(())
}

pub(super) async fn of_a_key_that_occurs_twice_in_a_batch_one_saga_is_started(trial: Trial) -> Verdict {
    let batch = [start("a"), start("k"), Start { input: json("8"), ..start("k") }, start("b"), start("k")];
    let answers = trial.start(&batch).await?;
    let twins = [1, 2, 4];
    let new: Vec<usize> = (0..5).filter(|&i| answers[i] == Started::New).collect();
    let winner =
        *new.iter().find(|i| twins.contains(i)).ok_or_else(|| Broken::new("no saga of the batch took the key"))?;
    for (i, answer) in answers.into_iter().enumerate() {
        let promised = match i == winner || !twins.contains(&i) {
            true => Started::New,
            false => existing(batch[winner].saga, batch[i].input == batch[winner].input),
        };
        same(&format!("answer {i} of a batch whose key {winner} took"), answer, promised)?;
    }
    same("found", trial.find("order", "k").await?, Some(batch[winner].saga))
}

pub(super) async fn answers_come_in_the_order_of_the_batch(trial: Trial) -> Verdict {
    let (first, second) = (start("m"), start("c"));
    same("first answers", &trial.start(&[first.clone(), second.clone()]).await?[..], [Started::New, Started::New])?;
    let batch = [start("z"), start("m"), second.clone(), start("a"), Start { input: json("8"), ..start("c") }];
    let promised = [Started::New, existing(first.saga, true), Started::New, Started::New, existing(second.saga, false)];
    same("answers to new, taken, repeated, new, taken", &trial.start(&batch).await?[..], promised)?;
    same("answers to nothing", trial.start(&[]).await?.len(), 0)
}

pub(super) async fn a_thousand_start_in_one_batch(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let batch: Vec<Start> =
        (0..1000).map(|i| Start { owner: (i % 2 == 0).then_some(worker), ..start(&format!("k{i}")) }).collect();
    let new = trial.start(&batch).await?.iter().filter(|answer| **answer == Started::New).count();
    same("new sagas", new, 1000)?;
    same("owned sagas", trial.owned(worker).await?.len(), 500)?;
    let claimed = trial.claim(worker, &[order()], 1000).await?;
    same("claimed sagas", claimed.len(), 500)?;
    let epochs: HashMap<SagaId, i64> = claimed.iter().map(|record| (record.saga, record.epoch)).collect();
    let first = |saga| entry(saga, epochs.get(&saga).copied().unwrap_or(1), 1, "first");
    let appends: Vec<Append> = batch.iter().map(|start| first(start.saga)).collect();
    let written = trial.append(worker, &appends).await?;
    same("written", written.iter().filter(|answer| **answer == super::trial::WRITTEN).count(), 1000)?;
    trial.has_journal(batch[999].saga, &["first"]).await
}

pub(super) async fn an_unowned_saga_is_due_at_once_and_an_owned_one_is_not(trial: Trial) -> Verdict {
    let (owner, other) = (trial.clerk().await?, trial.clerk().await?);
    let owned = trial.begin_owned(owner, "owned").await?;
    let unowned = trial.begin(start("unowned")).await?;
    same("owned", trial.owned(owner).await?, [owned].into())?;
    same("epoch of a saga that is started with an owner", trial.record(owned).await?.epoch, 1)?;
    let record = trial.claim_one(other, unowned).await?;
    same("epoch of the claim", record.epoch, trial.record(unowned).await?.epoch)
}

pub(super) async fn of_many_starts_of_a_key_at_the_same_time_one_is_new(trial: Trial) -> Verdict {
    for round in 0..5 {
        let racers: Vec<_> = (0..6)
            .map(|_| {
                let (trial, start) = (trial.clone(), start(&format!("k{round}")));
                tokio::spawn(async move { Ok::<_, Broken>((start.saga, trial.start(&[start]).await?.remove(0))) })
            })
            .collect();
        let mut answers = vec![];
        for racer in join_all(racers).await {
            answers.push(racer.unwrap()?);
        }
        let new: Vec<SagaId> =
            answers.iter().filter(|(_, answer)| *answer == Started::New).map(|(id, _)| *id).collect();
        same("the number of sagas that are new", new.len(), 1)?;
        for (saga, answer) in answers {
            promise!(
                saga == new[0] || answer == existing(new[0], true),
                "{} took the key, and a start at the same time was answered {answer:?}",
                new[0]
            );
        }
    }
    Ok(())
}

pub(super) async fn odd_inputs_survive_byte_for_byte(trial: Trial) -> Verdict {
    let texts = [
        r#"{ "b" :1,"a":  [ ], "b":2 }"#,
        r#"{"escaped":"\u0000\u001f\ud83d\ude00\/\u00e9","plain":"é e\u0301 😀 ß"}"#,
        "[123456789012345678901234567890.000000000000000000010, -0, 1E400, 0.10, 1e-7]",
        "{\"text\":\"tab\\tnewline\\n quote\\\" backslash\\\\ 'single' $1 %s {schema}\",\n\t\"x\" : null}",
        "\"\"",
        "null",
    ];
    let long = format!("[{}]", vec![r#""0123456789é""#; 20_000].join(","));
    for (i, text) in texts.into_iter().chain([long.as_str()]).enumerate() {
        let start = Start { input: json(text), ..start(&format!("k{i}")) };
        trial.begin(start.clone()).await?;
        let input = trial.record(start.saga).await?.input;
        promise!(input.as_str() == text, "the input {text:.200} came back as {:.200}", input.as_str());
        let again = Start { saga: SagaId::generate(), ..start.clone() };
        same("answer to the same input", &trial.start(&[again]).await?[..], [existing(start.saga, true)])?;
    }
    Ok(())
}

/// What a store may refuse: a key with a NUL, and one that is far too long for an index.
pub(super) async fn a_start_that_is_refused_is_rejected_with_its_whole_batch(trial: Trial) -> Verdict {
    let mut chance = fastrand::Rng::with_seed(7);
    let long: String = (0..100_000).map(|_| chance.alphanumeric()).collect();
    for (i, odd) in ["a\0b", &long].into_iter().enumerate() {
        let batch = [start(&format!("before {i}")), start(odd), start(&format!("after {i}"))];
        match trial.store().start(&batch).await {
            Ok(answers) => {
                same("answers", &answers[..], [Started::New, Started::New, Started::New])?;
                same("found", trial.find("order", odd).await?, Some(batch[1].saga))?;
            }
            Err(StoreError::Rejected(_)) => {
                let there = trial.statuses(&batch.clone().map(|start| start.saga)).await?;
                same("what was written of a batch that was rejected", &there[..], [None, None, None])?;
                trial.begin(batch[0].clone()).await?;
                trial.begin(batch[2].clone()).await?;
            }
            Err(error) => {
                return Err(Broken::new(format!(
                    "an odd key is neither taken nor `Rejected`: {error}. It would be sent again for ever"
                )));
            }
        }
    }
    Ok(())
}

/// The owner's identity is all that counts: whether it lives is the sweep's business.
pub(super) async fn a_saga_started_for_a_worker_that_is_gone_is_swept(trial: Trial) -> Verdict {
    let gone = WorkerId::generate();
    trial.join(gone, LONG, &[order()]).await?;
    trial.leave(gone).await?;
    let saga = trial.begin_owned(gone, "k").await?;
    trial.sweep_exactly(1).await?;
    let record = trial.claim_one(trial.clerk().await?, saga).await?;
    same("lapses", record.lapses, 1)?;
    let late = trial.append_one(gone, &no_entry(saga, 1, 1)).await?;
    same("answer to the one that is gone", late, crate::store::Appended::Lost)
}
