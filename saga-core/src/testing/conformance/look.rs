//! What is only looked at: `find`, `statuses`, `read`, `register`, `unclaimable`.

use super::Broken;
use super::trial::{DUE_NOW, RELEASE, Trial, Verdict, definition, done, entry, mail, order, same, start};
use crate::{
    SagaId,
    machine::Status,
    store::{Append, Census, DefinitionId, Start},
};
use std::{collections::HashSet, time::Duration};
use tokio::time::{Instant, sleep};

pub(super) async fn a_saga_is_found_by_name_and_key(trial: Trial) -> Verdict {
    let saga = trial.begin(start("k")).await?;
    let second = trial.begin(Start { version: 9, ..start("second") }).await?;
    same("found", trial.find("order", "k").await?, Some(saga))?;
    same("found, of another version", trial.find("order", "second").await?, Some(second))?;
    same("found", trial.find("order", "l").await?, None)?;
    same("found", trial.find("invoice", "k").await?, None)?;
    same("found", trial.find("k", "order").await?, None)
}

pub(super) async fn statuses_come_in_the_order_asked_for(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let mut asked = vec![SagaId::generate()];
    let mut promised = vec![None];
    for status in [Status::Completed, Status::Running, Status::RolledBack, Status::Parked, Status::Compensating] {
        let saga = trial.begin_owned(worker, &format!("{status:?}")).await?;
        trial.write(worker, &Append { status: Some(status), then: RELEASE, ..entry(saga, 1, 1, "e") }).await?;
        asked.insert(0, saga);
        promised.insert(0, Some(status));
    }
    asked.extend([asked[1], SagaId::generate(), asked[0]]);
    promised.extend([promised[1], None, promised[0]]);
    same("statuses", trial.statuses(&asked).await?, promised)?;
    same("statuses of nothing", trial.statuses(&[]).await?, vec![])
}

pub(super) async fn an_unknown_saga_cannot_be_read(trial: Trial) -> Verdict {
    trial.begin(start("k")).await?;
    same("what is read of an unknown saga", trial.read(SagaId::generate()).await?.map(|record| record.saga), None)
}

pub(super) async fn looking_changes_nothing(trial: Trial) -> Verdict {
    let worker = trial.clerk().await?;
    let saga = trial.begin(start("k")).await?;
    trial.deliver(&mail(saga, "m")).await?;
    let epoch = trial.record(saga).await?.epoch;
    for _ in 0..2 {
        let record = trial.record(saga).await?;
        same("epoch", record.epoch, epoch)?;
        same("mail", &record.mail[..], [mail(saga, "m")])?;
        trial.find("order", "k").await?;
        trial.statuses(&[saga]).await?;
        trial.owned(worker).await?;
        unclaimable(&trial).await?;
    }
    let record = trial.claim_one(worker, saga).await?;
    same("(lapses, messages)", (record.lapses, record.mail.len()), (0, 1))
}

/// Row and journal of a record are of one moment, also while the owner writes.
pub(super) async fn a_record_is_read_as_it_was_at_one_moment(trial: Trial) -> Verdict {
    const ENTRIES: i32 = 60;
    let worker = trial.clerk().await?;
    let saga = trial.begin_owned(worker, "k").await?;
    let status_after = |entries: usize| if entries.is_multiple_of(2) { Status::Running } else { Status::Compensating };
    let writer = trial.clone();
    let writing = tokio::spawn(async move {
        for seq in 1..=ENTRIES {
            let status = Some(status_after(seq as usize));
            writer.write(worker, &Append { status, ..entry(saga, 1, seq, "e") }).await?;
        }
        Ok::<_, Broken>(())
    });
    let mut longest = 0;
    while !writing.is_finished() {
        let record = trial.record(saga).await?;
        let entries = record.journal.len();
        promise!(
            record.status == status_after(entries),
            "a record was read with {entries} entries and status {:?}, which its owner never wrote together",
            record.status
        );
        promise!(entries >= longest, "a journal of {longest} entries was read, and then one of {entries}");
        longest = entries;
        tokio::task::yield_now().await;
    }
    writing.await.unwrap()
}

pub(super) async fn the_first_fingerprint_of_a_definition_stands(trial: Trial) -> Verdict {
    let register = async |definition: DefinitionId, fingerprint: &'static str| {
        done("register", || trial.store().register(&definition, fingerprint)).await
    };
    same("first", &*register(order(), "one").await?, "one")?;
    same("again", &*register(order(), "one").await?, "one")?;
    same("another", &*register(order(), "two").await?, "one")?;
    same("of another version", &*register(definition("order", 2), "two").await?, "two")?;
    same("of another name", &*register(definition("invoice", 1), "three").await?, "three")?;
    same("the first one", &*register(order(), "four").await?, "one")
}

pub(super) async fn the_census_tells_the_parked_and_the_oldest_of_each_name(trial: Trial) -> Verdict {
    let names = ["order", "invoice", "refund"].map(String::from);
    let census = async || done("census", || trial.store().census(&names)).await;
    same("census of an empty store", census().await?, vec![Census::default(); 3])?;
    let worker = trial.clerk().await?;
    let ended = trial.begin_owned(worker, "ended").await?;
    let first = Instant::now();
    let parked = trial.begin_owned(worker, "parked").await?;
    sleep(Duration::from_millis(20)).await;
    let second = Instant::now();
    let invoice = trial.begin(Start { name: "invoice".into(), ..start("i") }).await?;
    for (saga, status) in [(ended, Status::Completed), (parked, Status::Parked)] {
        trial.write(worker, &Append { status: Some(status), then: RELEASE, ..entry(saga, 1, 1, "e") }).await?;
    }
    let found = census().await?;
    same("parked of each name", found.iter().map(|of| of.parked).collect::<Vec<_>>(), vec![1, 0, 0])?;
    let [Some(order), Some(other), None] = [found[0].oldest, found[1].oldest, found[2].oldest] else {
        return Err(Broken::new(format!(
            "sagas of two names have not ended ({invoice} is one), the census says {found:?}"
        )));
    };
    promise!(order <= first.elapsed() && order > other, "the parked one began at {first:?}, its age is {order:?}");
    promise!(other <= second.elapsed(), "the other one began at {second:?}, its age is {other:?}");
    Ok(())
}

async fn unclaimable(trial: &Trial) -> Result<HashSet<DefinitionId>, Broken> {
    let definitions = done("unclaimable", || trial.store().unclaimable()).await?;
    let distinct: HashSet<DefinitionId> = definitions.iter().cloned().collect();
    same("different definitions in the answer", distinct.len(), definitions.len())?;
    Ok(distinct)
}

pub(super) async fn what_no_living_worker_knows_is_unclaimable(trial: Trial) -> Verdict {
    same("unclaimable in an empty store", unclaimable(&trial).await?, [].into())?;
    let [old, new] = [order(), definition("order", 2)];
    let starter = trial.worker(&[]).await?;
    trial.begin(start("a")).await?;
    trial.begin(start("b")).await?;
    trial.begin(Start { version: 2, ..start("c") }).await?;
    let owned = trial.begin(Start { name: "invoice".into(), owner: Some(starter), ..start("d") }).await?;
    same("unclaimable without a worker", unclaimable(&trial).await?, [old.clone(), new.clone()].into())?;
    let worker = trial.worker(&[definition("invoice", 1), new.clone(), definition("receipt", 1)]).await?;
    same("unclaimable, order 2 is known", unclaimable(&trial).await?, [old.clone()].into())?;
    let another = trial.worker(std::slice::from_ref(&old)).await?;
    same("unclaimable, both are known", unclaimable(&trial).await?, [].into())?;
    trial.lapse(worker).await?;
    same(
        "unclaimable after the lease of the one that knew order 2 lapsed",
        unclaimable(&trial).await?,
        [new.clone()].into(),
    )?;
    trial.leave(another).await?;
    same("unclaimable after the other one left", unclaimable(&trial).await?, [old.clone(), new.clone()].into())?;
    trial.release(starter, owned, 1, DUE_NOW).await?;
    same("unclaimable", unclaimable(&trial).await?, [old, new, definition("invoice", 1)].into())
}
