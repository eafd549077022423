//! Batches, and receivers that cannot take them.

use super::{
    Kept,
    trial::{
        Entry, Gate, Journal, World, assert_in_order, at_once, done, next_is_the_same, no_overlap, read_dead_letters,
        take_slowly,
    },
};
use crate::{
    message::Message,
    transport::{Outgoing, Unavailable, Verdict},
};
use futures::future::BoxFuture;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

pub(super) async fn a_batch_is_bounded_and_comes_after_the_one_before(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 100));
    world.publish(&sent).await?;
    let _consumer = world.read_as(&world.group, &world.topic, 7, &journal, take_slowly()).await?;
    world.until_handled(&journal, &sent).await?;
    no_overlap(&journal)?;
    journal.look(|entries| {
        for entry in entries {
            if let Entry::Began(batch, _) = entry {
                promise!(batch.len() <= 7, "a batch had {} messages instead of 7", batch.len());
            }
        }
        Ok(())
    })
}

pub(super) async fn a_partition_that_stands_still_holds_up_no_other(world: &World<'_>) -> Kept {
    let (journal, gate) = (Arc::new(Journal::default()), Gate::closed());
    let held = gate.clone();
    let hold_the_first =
        move |batch: Vec<Message>, call: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
            let gate = held.clone();
            Box::pin(async move {
                if call == 0 {
                    gate.pass().await;
                }
                Ok(vec![Verdict::Done; batch.len()])
            })
        };
    let _consumer = world.read(&journal, hold_the_first).await?;
    let sent: Vec<Outgoing> = (0..50).map(|n| world.event(&format!("k{n}"), n)).collect();
    world.publish(&sent).await?;
    world.until(&journal, "other partitions go on", |entries| done(entries).count() > 0).await?;
    gate.open();
    world.until_handled(&journal, &sent).await
}

pub(super) async fn an_unavailable_receiver_gets_the_same_messages_again(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 30));
    let now_and_then = at_once(|batch, call| match call % 3 {
        0 | 1 if call < 6 => Err(Unavailable("not now".into())),
        _ => Ok(vec![Verdict::Done; batch.len()]),
    });
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, now_and_then).await?;
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())?;
    next_is_the_same(&journal)
}

pub(super) async fn a_receiver_that_panics_gets_the_same_messages_again(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 30));
    let once =
        at_once(
            |batch, call| {
                if call == 0 { panic!("by the suite, on purpose") } else { Ok(vec![Verdict::Done; batch.len()]) }
            },
        );
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, once).await?;
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())?;
    next_is_the_same(&journal)
}

pub(super) async fn a_wrong_number_of_verdicts_loses_nothing(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 10));
    let wrong = at_once(|batch, call| Ok(vec![Verdict::Done; if call == 0 { batch.len() + 1 } else { batch.len() }]));
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, wrong).await?;
    world.until_handled(&journal, &sent).await
}

/// Where a message lay is told by its dead letter.
pub(super) async fn a_batch_is_of_one_partition_and_in_its_order(world: &World<'_>) -> Kept {
    let (journal, dead) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
    let sent: Vec<Outgoing> = (0..120).map(|n| world.event(&format!("k{}", n % 40), n)).collect();
    let reject = at_once(|batch, _| Ok(vec![Verdict::DeadLetter("to see where it lay".into()); batch.len()]));
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, reject).await?;
    world.until_handled(&journal, &sent).await?;
    let _burier = read_dead_letters(world, &dead).await?;
    world.until_handled(&dead, &sent).await?;
    let places: BTreeMap<String, (u64, u64)> =
        dead.handled().into_iter().filter_map(|message| Some((message.id.clone(), place(&message)?))).collect();
    journal.look(|entries| {
        let (mut passed, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for entry in entries {
            let Entry::Done(batch) = entry else { continue };
            let found = batch.iter().filter_map(|message| Some((&message.id, *places.get(&message.id)?)));
            let found: Vec<(&String, (u64, u64))> = found.collect();
            let partitions: BTreeSet<u64> = found.iter().map(|(_, (partition, _))| *partition).collect();
            promise!(partitions.len() == 1, "a batch was of the partitions {partitions:?}");
            for (id, (partition, offset)) in found {
                if seen.insert(id) {
                    let before: Option<u64> = passed.insert(partition, offset);
                    let behind = before.is_none_or(|before| before < offset);
                    promise!(behind, "in partition {partition}, offset {offset} came after {before:?}");
                }
            }
        }
        promise!(passed.len() > 1, "everything lay in one partition: the suite needs a topic of several");
        Ok(())
    })
}

fn place(message: &Message) -> Option<(u64, u64)> {
    let header = |name: &str| message.headers.get(&format!("saga-dead-letter-{name}"))?.parse().ok();
    Some((header("partition")?, header("offset")?))
}

pub(super) async fn an_unavailable_receiver_holds_up_no_other_partition(world: &World<'_>) -> Kept {
    let (journal, stuck, well) = (Arc::new(Journal::default()), Mutex::new(None), Gate::closed());
    let recovered = well.clone();
    // Whatever comes first is what cannot be handled, until the rest has gone on.
    let unless_first = at_once(move |batch, _| {
        let mut stuck = stuck.lock().unwrap();
        let first = stuck.get_or_insert_with(|| batch[0].id.clone());
        if batch[0].id == *first && !recovered.is_open() {
            return Err(Unavailable("not now".into()));
        }
        Ok(vec![Verdict::Done; batch.len()])
    });
    let sent: Vec<Outgoing> = (0..100).map(|n| world.event(&format!("k{}", n % 50), n)).collect();
    let (early, late) = sent.split_at(50);
    let _consumer = world.read(&journal, unless_first).await?;
    world.publish(early).await?;
    world.until(&journal, "other partitions go on", |entries| done(entries).count() > 0).await?;
    world.publish(late).await?;
    let of_late = |message: &Message| late.iter().any(|outgoing| outgoing.message.id == message.id);
    world.until(&journal, "other partitions still go on", |entries| done(entries).any(of_late)).await?;
    well.open();
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}
