//! What a saga of three commands costs, against the sum of its parts, and how many of them there are in a second.

use crate::{
    Result,
    arena::Arena,
    node, outbox,
    purchase::{Number, PARTICIPANTS, Purchase, participant},
};
use saga_core::{
    Encoded, Outcome, SagaId, Sagas, StepError,
    message::{CommandId, Message, Op},
    participant::{Inbox, Job},
    transport::{Outgoing, Receiver, Subscription, Transport, Unavailable, Verdict},
};
use saga_kafka::{KafkaTransport, TopicSpec};
use serde_json::json;
use sqlx::PgConnection;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinSet};

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// For how many seconds each number in flight is measured.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many purchases are under way at once.
    #[arg(long, value_delimiter = ',', default_value = "1,32,256")]
    in_flight: Vec<usize>,
    /// For how many seconds it runs before anything is measured.
    #[arg(long, default_value_t = 20)]
    warm_up: u64,
    /// How many partitions each topic has.
    #[arg(long, default_value_t = 2)]
    partitions: i32,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// What a purchase consists of.
#[derive(Clone, Copy)]
struct Parts {
    /// One row inserted and committed.
    commit: Duration,
    /// A command behind the barrier: the participant's transaction.
    participant: Duration,
    /// From the producer to the consumer.
    hop: Duration,
}

/// Start, first command; then for each of the three the mailbox and the append that folds it.
const COMMITS: u32 = 2 + 3 * 2;
const COMMANDS: u32 = 3;
const HOPS: u32 = 2 * 3;

impl Parts {
    fn sum(self) -> Duration {
        self.commit * COMMITS + self.participant * COMMANDS + self.hop * HOPS
    }
}

pub async fn run(brokers: &str, plan: &Plan) -> Result<()> {
    let arena = Arena::open(brokers, plan.partitions).await?;
    let transport = node::transport(brokers)?;
    let inbox = node::inbox(&arena.places).await?;
    let mut running = vec![];
    for name in PARTICIPANTS {
        running.push(participant(name, inbox.clone()).start(transport.clone()).await?);
    }
    let engine = node::engine(&arena.places, transport.clone()).await?;
    let sagas = engine.sagas::<Purchase>();
    // Until every consumer has its partitions, and the broker's code is compiled.
    measure(&sagas, 256, Duration::from_secs(plan.warm_up), "warm").await?;
    let parts = parts(&arena, &transport).await?;
    let mut lines = vec![];
    for &in_flight in &plan.in_flight {
        lines.push((in_flight, measure(&sagas, in_flight, Duration::from_secs(plan.seconds), "run").await?));
    }
    engine.shutdown(Duration::from_secs(5)).await;
    for participating in running {
        participating.stop().await;
    }
    let outbox = outbox::measure(&arena, &transport, plan.partitions).await?;
    arena.close().await;

    let alone = lines.iter().find(|(in_flight, _)| *in_flight == 1).map(|(_, measured)| measured.p50);
    let ratio = alone.map(|alone| alone.as_secs_f64() / parts.sum().as_secs_f64());
    let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
    if plan.json {
        let lines: Vec<_> = lines
            .iter()
            .map(|(in_flight, line)| {
                json!({ "in_flight": in_flight, "sagas_per_second": line.rate.round(), "p50_ms": ms(line.p50), "p99_ms": ms(line.p99) })
            })
            .collect();
        let parts = json!({
            "commit_ms": ms(parts.commit), "participant_ms": ms(parts.participant), "hop_ms": ms(parts.hop), "sum_ms": ms(parts.sum()),
        });
        let outbox = json!({
            "producer_events_per_second": outbox.producer.round(), "relay_events_per_second": outbox.relay.round(),
            "lag_p50_ms": ms(outbox.lag_p50), "lag_p99_ms": ms(outbox.lag_p99),
        });
        println!("{}", json!({ "parts": parts, "runs": lines, "p50_alone_of_sum": ratio, "outbox": outbox }));
        return Ok(());
    }
    println!(
        "alone: a commit {} ms, a participant's transaction {} ms, a hop over Kafka {} ms",
        ms(parts.commit),
        ms(parts.participant),
        ms(parts.hop)
    );
    println!(
        "a saga of three commands: {COMMITS} commits + {COMMANDS} transactions + {HOPS} hops = {} ms",
        ms(parts.sum())
    );
    println!("{:>10}{:>12}{:>10}{:>10}", "in flight", "sagas/s", "p50 ms", "p99 ms");
    for (in_flight, line) in lines {
        println!("{in_flight:>10}{:>12.0}{:>10}{:>10}", line.rate, ms(line.p50), ms(line.p99));
    }
    if let Some(ratio) = ratio {
        println!("p50 at 1 in flight is {ratio:.2} times the sum of its parts");
    }
    println!(
        "outbox: {:.0} events/s through the relay, {:.0} by a bare producer; from the insert to the acknowledgement p50 {} ms, p99 {} ms",
        outbox.relay,
        outbox.producer,
        ms(outbox.lag_p50),
        ms(outbox.lag_p99)
    );
    Ok(())
}

struct Measured {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

/// So many buyers, each with one purchase after the other.
async fn measure(sagas: &Sagas<Purchase>, in_flight: usize, time: Duration, run: &str) -> Result<Measured> {
    let began = Instant::now();
    let mut buyers = JoinSet::<Result<Vec<Duration>>>::new();
    for buyer in 0..in_flight {
        let (sagas, run) = (sagas.clone(), format!("{run}-{in_flight}-{buyer}"));
        buyers.spawn(async move {
            let mut times = vec![];
            while began.elapsed() < time {
                let submitted = Instant::now();
                let input = Number { number: times.len() as u64, trouble: false };
                let started = sagas.submit(format!("{run}-{}", times.len()), input).await?;
                match started.outcome().await? {
                    Outcome::Completed(_) => times.push(submitted.elapsed()),
                    other => return Err(format!("a purchase ended otherwise: {other:?}").into()),
                }
            }
            Ok(times)
        });
    }
    let mut times = vec![];
    while let Some(bought) = buyers.join_next().await {
        times.extend(bought??);
    }
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    Ok(Measured { rate, p50: percentile(&times, 50)?, p99: percentile(&times, 99)? })
}

fn percentile(sorted: &[Duration], percent: usize) -> Result<Duration> {
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    Ok(*sorted.get(place).ok_or("nothing was measured")?)
}

const REPEATS: usize = 300;

/// Measures the parts in turn, one after the other. Each of them alone and over and over would find everything still warm from its last time, which it does not in a saga.
async fn parts(arena: &Arena, transport: &Arc<dyn Transport>) -> Result<Parts> {
    let mut connection = arena.sagas.acquire().await?;
    sqlx::raw_sql("CREATE TABLE part (id bigint PRIMARY KEY, body text)").execute(&mut *connection).await?;
    let inbox = node::inbox(&arena.places).await?;
    KafkaTransport::new(&arena.places.brokers)?.ensure_topics(&[TopicSpec::new(HOP).partitions(1)]).await?;
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    let subscription = Subscription { group: HOP.into(), topics: vec![HOP.into()], batch: 1 };
    let consumer = transport.subscribe(subscription, Arc::new(Arrivals(sender))).await?;

    let (mut commits, mut transactions, mut hops) = (vec![], vec![], vec![]);
    for repeat in 0..REPEATS {
        let began = Instant::now();
        sqlx::query("INSERT INTO part VALUES ($1, 'as long as a short entry of a journal is, more or less')")
            .bind(i64::try_from(repeat)?)
            .execute(&mut *connection)
            .await?;
        commits.push(began.elapsed());

        let began = Instant::now();
        inbox.handle(&[job()]).await?;
        transactions.push(began.elapsed());

        let message = Message::event("figures", "hop.v1", "key", &Encoded::of(&7)?);
        let began = Instant::now();
        let published = transport.publish(&[Outgoing { topic: HOP.into(), message }]).await;
        published.into_iter().collect::<Result<Vec<()>, _>>()?;
        let arrived = arrivals.recv().await.ok_or("the consumer ended")?;
        hops.push(arrived - began);
    }
    consumer.stop().await;
    sqlx::raw_sql("DELETE FROM ledger").execute(&arena.ledger).await?;
    Ok(Parts { commit: median(commits)?, participant: median(transactions)?, hop: median(hops)? })
}

const HOP: &str = "hop";

/// A command that writes a line, as those of a purchase do.
fn job() -> Job<PgConnection> {
    let id = CommandId { saga: SagaId::generate(), step: "part".into(), generation: 0 };
    let saga = id.saga;
    Job::new(id, Op::Do, Duration::from_secs(10), move |db: &mut PgConnection, _| {
        Box::pin(async move {
            sqlx::query("INSERT INTO ledger (saga, step, op) VALUES ($1, 'part', 'do')")
                .bind(saga.as_uuid())
                .execute(db)
                .await?;
            Encoded::of(&7).map_err(StepError::unknown)
        })
    })
}

fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort_unstable();
    percentile(&times, 50)
}

struct Arrivals(mpsc::UnboundedSender<Instant>);

#[async_trait::async_trait]
impl Receiver for Arrivals {
    async fn receive(&self, batch: &[Message]) -> Result<Vec<Verdict>, Unavailable> {
        for _ in batch {
            // Nobody listens any more once it is measured.
            let _ = self.0.send(Instant::now());
        }
        Ok(vec![Verdict::Done; batch.len()])
    }
}
