//! What cannot be handled goes to the dead letters and holds up nothing.

use super::{
    Kept, Unkept,
    trial::{Journal, World, assert_in_order, at_once, read_dead_letters, take},
};
use crate::{
    message::Message,
    transport::{Outgoing, Verdict},
};
use chrono::DateTime;
use std::sync::Arc;

pub(super) async fn the_message_that_a_receiver_always_panics_on_is_a_dead_letter(world: &World<'_>) -> Kept {
    let (journal, dead, sent) = (Arc::new(Journal::default()), Arc::new(Journal::default()), world.events("k", 9));
    let culprit = sent[4].message.id.clone();
    let always = at_once(move |batch, _| {
        assert!(batch.iter().all(|message| message.id != culprit), "by the suite, on purpose");
        Ok(vec![Verdict::Done; batch.len()])
    });
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, always).await?;
    let others: Vec<Outgoing> =
        sent.iter().enumerate().filter(|(n, _)| *n != 4).map(|(_, each)| each.clone()).collect();
    world.until_handled(&journal, &others).await?;
    assert_in_order(&others, &journal.handled())?;
    let _burier = read_dead_letters(world, &dead).await?;
    world.until_handled(&dead, &sent[4..5]).await?;
    promise!(dead.handled().iter().all(|message| message.id == sent[4].message.id), "a neighbour is a dead letter too");
    let found = dead.handled().remove(0);
    let reason = found.headers.get("saga-dead-letter-reason").cloned().unwrap_or_default();
    promise!(reason.contains("by the suite, on purpose"), "the reason does not tell of the panic: `{reason}`");
    Ok(())
}

pub(super) async fn the_message_that_never_gets_its_verdict_is_a_dead_letter(world: &World<'_>) -> Kept {
    let (journal, dead, sent) = (Arc::new(Journal::default()), Arc::new(Journal::default()), world.events("k", 9));
    let culprit = sent[4].message.id.clone();
    let one_short = at_once(move |batch, _| {
        let answered = batch.iter().filter(|message| message.id != culprit).count();
        Ok(vec![Verdict::Done; answered])
    });
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, one_short).await?;
    let others = [&sent[..4], &sent[5..]].concat();
    world.until_handled(&journal, &others).await?;
    assert_in_order(&others, &journal.handled())?;
    let _burier = read_dead_letters(world, &dead).await?;
    world.until_handled(&dead, &sent[4..5]).await?;
    promise!(dead.handled().iter().all(|message| message.id == sent[4].message.id), "a neighbour is a dead letter too");
    Ok(())
}

pub(super) async fn a_rejected_message_is_found_among_the_dead_letters(world: &World<'_>) -> Kept {
    let (journal, dead) = (Arc::new(Journal::default()), Arc::new(Journal::default()));
    let mut sent = world.events("k", 5);
    sent[2].message.headers.insert("traceparent".into(), "00-1-2-01".into());
    let bad = sent[2].message.id.clone();
    let reject = at_once(move |batch, _| {
        let verdict = |message: &Message| {
            if message.id == bad { Verdict::DeadLetter("it is bad".into()) } else { Verdict::Done }
        };
        Ok(batch.iter().map(verdict).collect())
    });
    world.publish(&sent).await?;
    let _consumer = world.read(&journal, reject).await?;
    world.until_handled(&journal, &sent).await?;
    let _burier = read_dead_letters(world, &dead).await?;
    world.until_handled(&dead, &sent[2..3]).await?;
    let found = dead.handled().remove(0);
    let expected = &sent[2].message;
    let mut as_it_was = found.clone();
    as_it_was.headers.retain(|name, _| !name.starts_with("saga-dead-letter-"));
    promise!(as_it_was == *expected, "sent: {expected:?}\n    found: {found:?}");
    let header = |name: &str| found.headers.get(name).map(String::as_str);
    promise!(
        header("saga-dead-letter-reason") == Some("it is bad"),
        "the reason was {:?}",
        header("saga-dead-letter-reason")
    );
    promise!(
        header("saga-dead-letter-topic") == Some(&world.topic),
        "the topic was {:?}",
        header("saga-dead-letter-topic")
    );
    for name in ["partition", "offset"] {
        let value = header(&format!("saga-dead-letter-{name}"));
        let number = value.is_some_and(|value| value.parse::<u64>().is_ok());
        promise!(number, "the header `saga-dead-letter-{name}` is no number: {value:?}");
    }
    let time = header("saga-dead-letter-time");
    let readable = time.is_some_and(|time| DateTime::parse_from_rfc3339(time).is_ok());
    promise!(readable, "the header `saga-dead-letter-time` is no time as in RFC 3339: {time:?}");
    promise!(dead.handled().iter().all(|message| message.id == expected.id), "a neighbour is a dead letter too");
    Ok(())
}

pub(super) async fn what_was_rejected_does_not_come_again(world: &World<'_>) -> Kept {
    let (journal, dead, after) =
        (Arc::new(Journal::default()), Arc::new(Journal::default()), Arc::new(Journal::default()));
    let sent = world.events("k", 6);
    let (rejected, next) = sent.split_at(5);
    let reject = at_once(|batch, _| Ok(vec![Verdict::DeadLetter("all of them are bad".into()); batch.len()]));
    world.publish(rejected).await?;
    let consumer = world.read(&journal, reject).await?;
    world.until_handled(&journal, rejected).await?;
    let _burier = read_dead_letters(world, &dead).await?;
    world.until_handled(&dead, rejected).await?;
    consumer.stop().await;
    world.publish(next).await?;
    let _consumer = world.read(&after, take()).await?;
    world.until_handled(&after, next).await?;
    let again = after.handled().iter().filter(|message| message.id != next[0].message.id).count();
    promise!(again == 0, "{again} of 5 messages that were rejected came again");
    Ok(())
}

pub(super) async fn a_record_that_is_no_message_holds_up_nothing(world: &World<'_>) -> Kept {
    let journal = Arc::new(Journal::default());
    if !world.broker.rubbish(&world.topic).await {
        return Err(Unkept::LeftOut);
    }
    let sent: Vec<Outgoing> = (0..50).map(|n| world.event(&format!("k{n}"), n)).collect();
    world.publish(&sent).await?;
    world.broker.rubbish(&world.topic).await;
    let _consumer = world.read(&journal, take()).await?;
    world.until_handled(&journal, &sent).await
}
