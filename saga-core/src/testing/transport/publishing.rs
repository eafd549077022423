//! What is accepted is delivered, as it was sent and in the order of its key.

use super::{
    Kept, Unkept,
    trial::{Journal, World, assert_in_order, publish, take},
};
use crate::{
    message::Message,
    transport::{Outgoing, PublishError},
};
use std::{collections::HashMap, sync::Arc};
use tokio::task::JoinSet;

pub(super) async fn what_is_accepted_is_delivered(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 100));
    let _consumer = world.read(&journal, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&journal, &sent).await
}

pub(super) async fn a_message_arrives_as_it_was_sent(world: &World<'_>) -> Kept {
    let mut sent = vec![world.event("key with \"spaces\" and ü", 0), world.event("k", 1), world.event("k", 2)];
    let exotic = &mut sent[0].message;
    exotic.extensions.insert("sagaid".into(), "0".into());
    exotic.extensions.insert("replyto".into(), "ä topic".into());
    exotic.headers.insert("traceparent".into(), "00-1-2-01".into());
    exotic.headers.insert("baggage".into(), "a=1,b=ß".into());
    exotic.content_type = "application/octet-stream".into();
    exotic.data = (0..=255).collect();
    sent[1].message.data = vec![];
    sent[1].message.subject = None;
    let foreign = &mut sent[2].message;
    foreign.id = format!("{}/größe 7", foreign.id);
    foreign.kind = "größe.gezählt.v1".into();
    foreign.source = "日本/注文?a=b c".into();
    foreign.subject = Some("%20 \u{1f980}".into());
    foreign.headers.insert("empty".into(), String::new());
    foreign.data = vec![0, 0xff, b'\n', b'\r'];
    let journal = Arc::new(Journal::default());
    let _consumer = world.read(&journal, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&journal, &sent).await?;
    let handled: HashMap<String, Message> =
        journal.handled().into_iter().map(|message| (message.id.clone(), message)).collect();
    for Outgoing { message, .. } in &sent {
        let received = &handled[&message.id];
        promise!(received == message, "sent: {message:?}\n    received: {received:?}");
    }
    Ok(())
}

pub(super) async fn messages_of_a_key_keep_their_order_within_a_call(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), (0..300).map(|n| world.event(&format!("k{}", n % 5), n)));
    let sent: Vec<Outgoing> = sent.collect();
    let _consumer = world.read(&journal, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}

pub(super) async fn messages_of_a_key_keep_their_order_from_call_to_call(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 100));
    let _consumer = world.read(&journal, take()).await?;
    for part in sent.chunks(3) {
        world.publish(part).await?;
    }
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}

pub(super) async fn calls_at_once_keep_the_order_of_each(world: &World<'_>) -> Kept {
    let journal = Arc::new(Journal::default());
    let _consumer = world.read(&journal, take()).await?;
    let node = world.broker.node().await;
    let (mut calls, mut sent) = (JoinSet::new(), vec![]);
    for caller in 0..8 {
        let events = world.events(&format!("k{caller}"), 40);
        let (node, part) = (node.clone(), events.clone());
        calls.spawn(async move { publish(&*node, &part).await });
        sent.extend(events);
    }
    while let Some(called) = calls.join_next().await {
        called.map_err(|error| error.to_string())??;
    }
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}

pub(super) async fn what_is_too_large_is_refused_and_its_neighbours_are_not(world: &World<'_>) -> Kept {
    let (journal, mut sent) = (Arc::new(Journal::default()), world.events("k", 5));
    let _consumer = world.read(&journal, take()).await?;
    let node = world.broker.node().await;
    let largest = node.max_message_bytes();
    sent[1].message.data = vec![b'1'; largest + 1];
    sent[3].message.headers.insert("baggage".into(), "1".repeat(largest + 1));
    let answers = node.publish(&sent).await;
    promise!(
        matches!(
            answers.as_slice(),
            [Ok(()), Err(PublishError::Refused(_)), Ok(()), Err(PublishError::Refused(_)), Ok(())]
        ),
        "the answers were {answers:?}"
    );
    // The last is behind them all.
    let accepted: Vec<Outgoing> = sent.into_iter().step_by(2).collect();
    world.until_handled(&journal, &accepted).await?;
    promise!(journal.handled().len() == accepted.len(), "a refused one was delivered");
    Ok(())
}

pub(super) async fn what_was_published_before_the_first_consumer_came_is_delivered(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 10));
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, take()).await?;
    world.until_handled(&journal, &sent).await
}

pub(super) async fn each_group_gets_everything(world: &World<'_>) -> Kept {
    let (one, other) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
    let sent: Vec<Outgoing> = (0..20).map(|n| world.event(&format!("k{n}"), n)).collect();
    let _consumer = world.read(&one, take()).await?;
    let another = format!("{}-2", world.group);
    let _another = world.read_as(&another, &world.topic, 10, &other, take()).await?;
    world.publish(&sent).await?;
    world.until_handled(&one, &sent).await?;
    world.until_handled(&other, &sent).await
}

pub(super) async fn a_subscription_to_a_topic_that_is_not_there_fails_or_makes_it(world: &World<'_>) -> Kept {
    let (journal, topic) = (Arc::new(Journal::default()), format!("{}-none", world.topic));
    let Ok(_consumer) = world.read_as(&world.group, &topic, 10, &journal, take()).await else { return Ok(()) };
    let mut sent = world.events("k", 10);
    sent.iter_mut().for_each(|outgoing| outgoing.topic.clone_from(&topic));
    world.publish(&sent).await?;
    world.until_handled(&journal, &sent).await
}

pub(super) async fn an_outage_loses_nothing_and_keeps_the_order(world: &World<'_>) -> Kept {
    let (journal, sent) = (Arc::new(Journal::default()), world.events("k", 121));
    let _consumer = world.read(&journal, take()).await?;
    world.publish(&sent[..1]).await?;
    world.until_handled(&journal, &sent[..1]).await?;
    let node = world.broker.node().await;
    for part in sent[1..].chunks(40) {
        if !world.broker.cut_off().await {
            return Err(Unkept::LeftOut);
        }
        let answers = node.publish(part).await;
        promise!(answers.len() == part.len(), "{} answers on {} messages", answers.len(), part.len());
        let refused = answers.iter().find(|answer| matches!(answer, Err(PublishError::Refused(_))));
        promise!(refused.is_none(), "a message was refused because the broker was away: {refused:?}");
        world.broker.bring_back().await;
        // What was not accepted may be there or not: it is published again, by another node, in its order.
        let unknown: Vec<Outgoing> =
            part.iter().zip(&answers).filter(|(_, answer)| answer.is_err()).map(|(each, _)| each.clone()).collect();
        world.publish_in_the_end(&unknown).await?;
    }
    world.until_handled(&journal, &sent).await?;
    assert_in_order(&sent, &journal.handled())
}
