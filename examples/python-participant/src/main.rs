//! A saga whose participant is `loyalty.py`: it awards points, and takes them back when the purchase is declined. Call it by `scripts/kafka run --`.

#![allow(unreachable_pub, missing_docs, reason = "a program has nobody outside")]

use async_trait::async_trait;
use clap::Parser;
use saga_core::{
    Cx, Engine, MemoryStore, Out, Outcome, Saga, SagaBuilder, StepError,
    message::{CommandAttributes, Message, Op},
    participant::Command,
    transport::{Outgoing, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_kafka::{KafkaTransport, TopicSpec};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command as Program},
    sync::mpsc,
    time::timeout,
};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const PATIENCE: Duration = Duration::from_secs(60);

/// What the Python service takes, as agreed with it.
#[derive(Debug, Serialize, Deserialize)]
struct Award {
    customer: String,
    points: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Awarded {
    balance: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Revoke;

impl Command for Award {
    const TYPE: &'static str = "loyalty.award.v1";
    const TOPIC: &'static str = "loyalty.commands";
    type Reply = Awarded;
}

impl Command for Revoke {
    const TYPE: &'static str = "loyalty.revoke.v1";
    const TOPIC: &'static str = Award::TOPIC;
    type Reply = ();
}

/// A purchase: points for the customer, then the money, which may be declined.
struct Purchase;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bought {
    customer: String,
    cents: u32,
}

impl Saga for Purchase {
    const NAME: &'static str = "purchase";
    const VERSION: u32 = 1;
    type Input = Bought;
    type Output = u32;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, u32> {
        let awarded = saga
            .compensatable("award-points")
            .command(|bought| Award { customer: bought.customer, points: bought.cents / 100 })
            .compensate_command(|_, _| Revoke);
        saga.pivot("charge").reads(awarded).run(charge)
    }
}

async fn charge(_: Cx<()>, bought: Bought, awarded: Awarded) -> Result<u32, StepError> {
    if bought.cents > 500_000 {
        return Err(StepError::fail("declined"));
    }
    Ok(awarded.balance)
}

#[derive(Parser)]
struct Arguments {
    #[arg(long, env = "KAFKA_BROKERS")]
    brokers: String,
    /// A Python with the packages of `requirements.txt`.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { brokers, python } = Arguments::parse();
    let kafka: Arc<dyn Transport> = {
        let kafka = KafkaTransport::new(&brokers)?;
        kafka.ensure_topics(&[TopicSpec::new(Award::TOPIC), TopicSpec::new("shop.replies")]).await?;
        Arc::new(kafka)
    };
    let scratch = tempfile::tempdir()?;
    let mut loyalty = start(&python, &brokers, &scratch.path().join("loyalty.db")).await?;
    let mut commands = listen(&kafka, Award::TOPIC).await?;
    let mut replies = listen(&kafka, "shop.replies").await?;
    let engine = Engine::builder(MemoryStore::default()).transport("shop", kafka.clone());
    let engine = engine.register::<Purchase>(())?.start().await?;
    let purchases = engine.sagas::<Purchase>();
    let buy = |key: &str, cents: u32| {
        let (purchases, key) = (purchases.clone(), key.to_owned());
        async move {
            let bought = Bought { customer: "ada".into(), cents };
            Result::<_>::Ok(timeout(PATIENCE, purchases.submit(key, bought).await?.outcome()).await??)
        }
    };

    check("a purchase of 120.00 gives ada 120 points", buy("purchase-1", 12_000).await? == Outcome::Completed(120))?;
    let command = next(&mut commands).await?;
    let first = next(&mut replies).await?;

    kafka.publish(&[Outgoing { topic: Award::TOPIC.into(), message: command.clone() }]).await;
    let again = next(&mut replies).await?;
    let same = (&first.data, &first.extensions) == (&again.data, &again.extensions) && first.id != again.id;
    check("the command comes twice: the same answer", same)?;

    let trace = |message: &Message| message.headers.get("traceparent").and_then(|it| it.get(3..35)).map(str::to_owned);
    check("the reply is in the command's trace", trace(&command).is_some() && trace(&command) == trace(&again))?;

    let Outcome::RolledBack(why) = buy("purchase-2", 600_000).await? else {
        return Err("a purchase that was to be declined was not".into());
    };
    println!("   rolled back: {why}");
    let ops = [next(&mut replies).await?, next(&mut replies).await?].map(|reply| reply.extensions["sagaop"].clone());
    check(
        "a declined purchase: its points were awarded, and taken back",
        ops == [Op::Do.to_string(), Op::Undo.to_string()],
    )?;

    let late = loop {
        let sent = next(&mut commands).await?;
        if CommandAttributes::of(&sent)?.id.saga != CommandAttributes::of(&command)?.id.saga {
            break sent;
        }
    };
    kafka.publish(&[Outgoing { topic: Award::TOPIC.into(), message: late }]).await;
    check(
        "the command comes again after its undo: answered as before",
        next(&mut replies).await?.extensions["sagaoutcome"] == "success",
    )?;

    check(
        "too many points: the service's own no",
        matches!(buy("purchase-3", 2_000_000).await?, Outcome::RolledBack(_)),
    )?;
    check(
        "a purchase of 30.00 gives ada 150 points: nothing was done twice",
        buy("purchase-4", 3_000).await? == Outcome::Completed(150),
    )?;

    engine.shutdown(Duration::from_secs(5)).await;
    loyalty.kill().await?;
    println!("Every promise of the message contract that a saga relies on was kept.");
    Ok(())
}

fn check(what: &str, holds: bool) -> Result<()> {
    println!(" {} {what}", if holds { "✓" } else { "✗" });
    if holds { Ok(()) } else { Err(what.into()) }
}

async fn start(python: &PathBuf, brokers: &str, database: &std::path::Path) -> Result<Child> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/loyalty.py");
    let mut child = Program::new(python)
        .args([script, "--brokers", brokers, "--database"])
        .arg(database)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or("a child without stdout")?;
    let ready = timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await??;
    ready.ok_or("loyalty.py ended before it was ready: are the packages of requirements.txt there? See --python")?;
    Ok(child)
}

struct Into(mpsc::UnboundedSender<Message>);

#[async_trait]
impl Receiver for Into {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        for message in batch {
            // It only fails when the program is about to end.
            let _ = self.0.send(message.clone());
        }
        Ok(vec![Verdict::Done; batch.len()])
    }
}

/// Listens to a topic besides those that work with it.
async fn listen(kafka: &Arc<dyn Transport>, topic: &str) -> Result<mpsc::UnboundedReceiver<Message>> {
    let (sender, messages) = mpsc::unbounded_channel();
    let subscription = Subscription { group: "listener".to_owned() + topic, topics: vec![topic.into()], batch: 100 };
    // It works until the program ends.
    std::mem::forget(kafka.subscribe(subscription, Arc::new(Into(sender))).await?);
    Ok(messages)
}

async fn next(messages: &mut mpsc::UnboundedReceiver<Message>) -> Result<Message> {
    Ok(timeout(PATIENCE, messages.recv()).await?.ok_or("the consumer ended")?)
}
