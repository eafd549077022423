//! Numbers through the store and the inbox: what is read back, by another process too, is bit for bit what was written.

mod common;

use common::{Setup, fresh};
use saga_core::{
    Engine, Out, Outcome, Saga, SagaBuilder, StepError,
    participant::{Command, CommandCx, Participant},
    transport::{LocalTransport, Transport},
};
use saga_postgres::PgInbox;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Compared as `Debug` shows it: no two floats look the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Numbers {
    double: f64,
    single: f32,
    wide: (u128, i128, u64, i64),
    rates: Vec<Option<f64>>,
    by_key: BTreeMap<u64, Amount>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Amount {
    Exact(i128),
    Rate(f64),
}

impl Numbers {
    fn some(n: u64) -> Self {
        let extreme = [0.1, -0.0, 5e-324, f64::MIN_POSITIVE, f64::MAX, f64::MIN, 1e21, 3.267_519_460_792_711_4e173];
        let double = f64::from_bits(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) & !(1 << 62));
        let amount = if n.is_multiple_of(2) { Amount::Exact(i128::MIN + i128::from(n)) } else { Amount::Rate(double) };
        Self {
            double,
            single: [0.1, -0.0, 1e-45, f32::MAX][n as usize % 4],
            wide: (u128::MAX - u128::from(n), i128::MIN, u64::MAX, i64::MIN),
            rates: extreme.into_iter().map(Some).chain([None, Some(double)]).collect(),
            by_key: [(u64::MAX - n, amount)].into(),
        }
    }
}

macro_rules! command {
    ($name:ident($field:ty) -> $reply:ty, $kind:literal) => {
        #[derive(Serialize, Deserialize)]
        struct $name($field);
        impl Command for $name {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = "bank.commands";
            type Reply = $reply;
        }
    };
}
command!(Reserve(Numbers) -> Numbers, "bank.reserve.v1");
command!(Release(Option<Numbers>) -> (), "bank.release.v1");
command!(Charge(Numbers) -> Numbers, "bank.charge.v1");

struct Payment;

impl Saga for Payment {
    const NAME: &'static str = "payment";
    const VERSION: u32 = 1;
    type Input = Numbers;
    type Output = Numbers;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, Numbers> {
        let reserved = saga.compensatable("reserve").command(Reserve).compensate_command(|_, numbers| Release(numbers));
        saga.pivot("charge").reads(reserved).command(|_, numbers| Charge(numbers))
    }
}

/// What the bank has seen, with the place where.
type Seen = Arc<Mutex<Vec<(&'static str, String)>>>;

fn note(seen: &Seen, place: &'static str, numbers: &Numbers) {
    seen.lock().unwrap().push((place, format!("{numbers:?}")));
}

async fn reserve(seen: CommandCx<Seen>, _: &mut PgConnection, Reserve(numbers): Reserve) -> Result<Numbers, StepError> {
    note(&seen, "command", &numbers);
    Ok(numbers)
}

async fn release(seen: CommandCx<Seen>, _: &mut PgConnection, Release(numbers): Release) -> Result<(), StepError> {
    note(&seen, "reply, in an undo", &numbers.expect("it is known"));
    note(&seen, "reply, kept", &seen.kept::<Numbers>()?.expect("it was kept"));
    Ok(())
}

async fn charge(seen: CommandCx<Seen>, _: &mut PgConnection, Charge(numbers): Charge) -> Result<Numbers, StepError> {
    note(&seen, "reply, in a command", &numbers);
    match numbers.wide.0 {
        n if n.is_multiple_of(3) => Err(StepError::fail("no")),
        _ => Ok(numbers),
    }
}

#[tokio::test]
async fn numbers_pass_through_store_and_inbox_bit_for_bit() {
    let Setup { store, url, schema } = fresh(|_, sql| sql).await;
    let (seen, transport) = (Seen::default(), Arc::new(LocalTransport::default()) as Arc<dyn Transport>);
    let inbox = PgInbox::in_schema(PgPool::connect(&url).await.unwrap(), &schema).unwrap();
    let bank = Participant::new("bank", inbox, seen.clone()).on(reserve).on_undo(release).on(charge);
    // The sagas are started by a process that is gone when they run: all is read from the store.
    let client = Engine::builder(store.clone()).start().await.unwrap();
    let mut payments = vec![];
    for n in 0..100 {
        let numbers = Numbers::some(n);
        payments.push((client.sagas::<Payment>().submit(n.to_string(), numbers.clone()).await.unwrap().id(), numbers));
    }
    client.kill().await;
    let builder = Engine::builder(store.clone()).transport("shop", transport.clone());
    let engine = builder.register::<Payment>(()).unwrap().start().await.unwrap();
    let bank = bank.start(transport).await.unwrap();
    let mut all = vec![];
    for (payment, numbers) in payments {
        let told = format!("{numbers:?}");
        match engine.sagas::<Payment>().get(payment).outcome().await.unwrap() {
            Outcome::Completed(output) => assert_eq!(format!("{output:?}"), told),
            Outcome::RolledBack(why) => {
                assert_eq!(why.reason, "no");
                all.extend([("reply, in an undo", told.clone()), ("reply, kept", told.clone())]);
            }
            Outcome::Parked(why) => panic!("parked at {why}"),
        }
        all.extend([("command", told.clone()), ("reply, in a command", told)]);
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    all.sort();
    assert_eq!(seen, all);
    bank.stop().await;
    engine.shutdown(Duration::from_secs(1)).await;
}
