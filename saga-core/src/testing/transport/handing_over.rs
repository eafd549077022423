//! Consumers that stop, die, come and go.

use super::{
    Kept,
    trial::{Gate, Journal, React, World, assert_in_order, at_once, began, no_overlap, take, take_slowly},
};
use crate::{
    message::Message,
    transport::{Outgoing, Unavailable, Verdict},
};
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

pub(super) async fn a_consumer_that_stops_ends_its_batch_and_keeps_its_progress(world: &World<'_>) -> Kept {
    let (journal, gate, sent) = (Arc::new(Journal::default()), Gate::closed(), world.events("k", 40));
    world.publish(&sent).await?;
    let consumer = world.read(&journal, take_once_open(&gate)).await?;
    world.until(&journal, "a batch begins", |entries| !entries.is_empty()).await?;
    let mut stopping = tokio::spawn(async move { consumer.stop().await });
    promise!(timeout(Duration::from_millis(200), &mut stopping).await.is_err(), "it stopped in the middle of a batch");
    gate.open();
    stopping.await.map_err(|error| error.to_string())?;
    let before = journal.handled();
    promise!(!before.is_empty(), "the batch under way was broken off");
    let after = Arc::new(Journal::default());
    let _consumer = world.read(&after, take()).await?;
    world.until_handled(&after, &sent[before.len()..]).await?;
    let again: Vec<Message> = after.handled().into_iter().filter(|message| before.contains(message)).collect();
    promise!(again.is_empty(), "{} of {} messages that were dealt with came again", again.len(), before.len());
    promise!(journal.handled().len() == before.len(), "it went on after it had stopped");
    Ok(())
}

pub(super) async fn a_consumer_whose_receiver_is_unavailable_can_stop(world: &World<'_>) -> Kept {
    let (journal, after, sent) = (Arc::new(Journal::default()), Arc::new(Journal::default()), world.events("k", 20));
    world.publish(&sent).await?;
    let consumer = world.read(&journal, at_once(|_, _| Err(Unavailable("not now".into())))).await?;
    world.until(&journal, "a batch begins", |entries| !entries.is_empty()).await?;
    let stopped = timeout(world.broker.patience(), consumer.stop()).await;
    promise!(stopped.is_ok(), "it waits for a receiver that may never be available");
    let _consumer = world.read(&after, take()).await?;
    world.until_handled(&after, &sent).await?;
    assert_in_order(&sent, &after.handled())
}

pub(super) async fn what_is_under_way_ends_before_another_consumer_goes_on(world: &World<'_>) -> Kept {
    let (journal, gate, sent) = (Arc::new(Journal::default()), Gate::closed(), world.events("k", 40));
    world.publish(&sent).await?;
    let leaving = world.read(&journal, take_once_open(&gate)).await?;
    world.until(&journal, "a batch begins", |entries| !entries.is_empty()).await?;
    let _consumer = world.read(&journal, take()).await?;
    let stopping = tokio::spawn(async move { leaving.stop().await });
    // Time for whoever does not wait; it proves nothing if nobody comes.
    let too_early = world.until(&journal, "another batch begins", |entries| began(entries).count() > 10);
    let _ = timeout(HELD, too_early).await;
    gate.open();
    stopping.await.map_err(|error| error.to_string())?;
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())?;
    no_overlap(&journal)
}

/// How long a batch is held while its partition is to change hands.
const HELD: Duration = Duration::from_secs(2);

fn take_once_open(gate: &Gate) -> impl React {
    let gate = gate.clone();
    move |batch: Vec<Message>, _: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
        let gate = gate.clone();
        Box::pin(async move {
            gate.pass().await;
            Ok(vec![Verdict::Done; batch.len()])
        })
    }
}

pub(super) async fn a_consumer_that_dies_in_a_batch_loses_nothing(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 20));
    let for_ever = |_: Vec<Message>, _: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
        Box::pin(std::future::pending())
    };
    world.publish(&sent).await?;
    let consumer = world.read(&journal, for_ever).await?;
    world.until(&journal, "a batch begins", |entries| !entries.is_empty()).await?;
    drop(consumer);
    let after = Arc::new(Journal::default());
    let _consumer = world.read(&after, take()).await?;
    world.until_handled(&after, &sent).await?;
    assert_in_order(&sent, &after.handled())
}

pub(super) async fn a_running_consumer_takes_over_from_one_that_dies(world: &World<'_>) -> Kept {
    let (journal, after) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
    let sent: Vec<Outgoing> = (0..60).map(|n| world.event(&format!("k{}", n % 20), n)).collect();
    let for_ever = |_: Vec<Message>, _: usize| -> BoxFuture<'static, Result<Vec<Verdict>, Unavailable>> {
        Box::pin(std::future::pending())
    };
    world.publish(&sent).await?;
    let dying = world.read(&journal, for_ever).await?;
    world.until(&journal, "a batch begins", |entries| !entries.is_empty()).await?;
    let _consumer = world.read(&after, take()).await?;
    drop(dying);
    world.until_handled(&after, &sent).await?;
    assert_in_order(&sent, &after.handled())
}

pub(super) async fn consumers_that_come_and_go_share_without_loss_or_overlap(world: &World<'_>) -> Kept {
    let journal = Arc::new(Journal::default());
    let mut sent = vec![];
    let mut consumers = vec![world.read(&journal, take_slowly()).await?];
    for round in 0..3 {
        let part: Vec<Outgoing> = (0..60).map(|n| world.event(&format!("k{}", n % 12), round * 100 + n)).collect();
        consumers.push(world.read(&journal, take_slowly()).await?);
        world.publish(&part).await?;
        let of_this_part = |message: &Message| part.iter().any(|outgoing| outgoing.message.id == message.id);
        world.until(&journal, "its messages are begun", |entries| began(entries).any(of_this_part)).await?;
        sent.extend(part.clone());
        if round > 0 {
            // In the middle of them.
            consumers.remove(0).stop().await;
        }
        world.until_handled(&journal, &sent).await?;
    }
    assert_in_order(&sent, &journal.handled())?;
    no_overlap(&journal)
}
