//! A schema that is full beside an empty one, in turns.

use super::{
    admin, median,
    service::{AWAY, Figures, Service, Until},
};
use crate::Result;
use saga_postgres::testing::Postgres;
use std::{sync::Arc, time::Duration};

const CUSTOMERS: usize = 32;
/// Of what an empty schema does.
const SHARE: f64 = 0.9;

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// How often each of the two is measured.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

/// 300,000 sagas have ended; 50,000 wait for tomorrow and 50,000 for mail; 50,000 letters are for a version that
/// nobody runs, and 20,000 events for a topic that is away.
const FILL: &str = "
    INSERT INTO full_one.saga (id, name, version, key, status, input, epoch, due_at, due_from)
    SELECT gen_random_uuid(), 'small', 1, 'before ' || n, CASE WHEN n <= 300000 THEN 3 ELSE 0 END, 'null', 1,
           CASE WHEN n > 350000 THEN now() + interval '1 day' END, CASE WHEN n > 350000 THEN now() END
    FROM generate_series(1, 400000) n;
    INSERT INTO full_one.saga_journal (saga_id, seq, writer, entry)
    SELECT id, seq, gen_random_uuid(), '[]' FROM full_one.saga, generate_series(1, 4) seq;
    INSERT INTO full_one.saga_mailbox (saga_id, message, body, name, version)
    SELECT gen_random_uuid(), 'm', '{}', 'small', 99 FROM generate_series(1, 50000);
    INSERT INTO full_one.saga_outbox (shard, id, aggregatetype, aggregateid, type, source, time, content_type, payload)
    SELECT n % 64, gen_random_uuid(), '{away}', n::text, 'stranger.v1', 'small', now(), 'application/json', 'null'
    FROM generate_series(1, 20000) n";

type Measure = fn(&Figures) -> f64;

/// What is not as it should be.
pub async fn run(plan: &Plan) -> Result<Vec<String>> {
    let postgres = Postgres::private().await?;
    let url = postgres.url();
    for schema in ["empty_one", "full_one"] {
        close(Arc::new(Service::open(&url, schema).await?)).await;
    }
    admin(&url, &FILL.replace("{away}", AWAY)).await?;
    admin(&url, "VACUUM ANALYZE").await?;

    let (mut empty, mut full) = (vec![], vec![]);
    println!("| schema | sagas/s | submit p99 ms | end p99 ms | event p99 ms |\n|---|---|---|---|---|");
    for round in 0..plan.rounds {
        // Which of them comes first changes.
        for turn in 0..2 {
            let (schema, figures) =
                if (round + turn) % 2 == 0 { ("empty_one", &mut empty) } else { ("full_one", &mut full) };
            let service = Arc::new(Service::open(&url, schema).await?);
            service.serve(CUSTOMERS, Until::Time(Duration::from_secs(2))).await?;
            let of = service.serve(CUSTOMERS, Until::Time(Duration::from_secs(plan.seconds))).await?;
            println!(
                "| {schema} | {:.0} | {:.1} | {:.1} | {:.1} |",
                of.sagas_per_s, of.submit_p99, of.end_p99, of.lag_p99
            );
            figures.push(of);
            close(service).await;
        }
    }
    postgres.stop().await;

    // In each of them more is better.
    let measures: [(&str, Measure); 3] = [
        ("sagas a second", |of| of.sagas_per_s),
        ("the submit's 99th percentile", |of| 1.0 / of.submit_p99),
        ("the event's 99th percentile", |of| 1.0 / of.lag_p99),
    ];
    let mut missed = vec![];
    println!();
    for (what, measure) in measures {
        let of = |figures: &[Figures]| median(figures.iter().map(measure).collect());
        let share = of(&full) / of(&empty);
        println!("{what}: {share:.2} of an empty schema's");
        if share.is_nan() || share < SHARE {
            missed.push(format!("{what}: {share:.2} of an empty schema's"));
        }
    }
    Ok(missed)
}

async fn close(service: Arc<Service>) {
    if let Ok(service) = Arc::try_unwrap(service) {
        service.close().await;
    }
}
