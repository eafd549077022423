//! Numbers, on every way that they go: each is read bit for bit as it was written, and what JSON has no number for is
//! refused where it is written.

use saga_core::{
    CompensationCx, Cx, Encoded, Engine, Error, MemoryStore, Out, Outcome, Saga, SagaBuilder, StepError,
    participant::{Command, CommandCx, MemoryInbox, Participant},
    transport::{LocalTransport, Transport},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

/// All of serde's numbers, in all that they can be in. They are compared as `Debug` shows them: it tells -0.0 from 0.0,
/// and no two floats look the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Numbers {
    unsigned: (u8, u16, u32, u64, u128),
    signed: (i8, i16, i32, i64, i128),
    single: f32,
    double: f64,
    perhaps: Option<f64>,
    many: Vec<(f64, f32)>,
    array: [f64; 3],
    nested: Amount,
    wide_keys: BTreeMap<u128, f64>,
    small_keys: BTreeMap<i64, Option<u128>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Amount {
    None,
    Exact(i128),
    Rate(f64),
    Range(f64, f32),
    In { currency: u64, amount: Box<Amount>, rates: HashMap<u8, f64> },
}

const DOUBLES: [f64; 14] = [
    0.0,
    -0.0,
    0.1,
    5e-324,
    -5e-324,
    2.225_073_858_507_201e-308,
    f64::MIN_POSITIVE,
    f64::MAX,
    f64::MIN,
    f64::EPSILON,
    1e21,
    9_007_199_254_740_993.0,
    3.267_519_460_792_711_4e173,
    1.797_693_134_862_315_5e308,
];
const SINGLES: [f32; 8] = [0.0, -0.0, 0.1, 1e-45, f32::MIN_POSITIVE, f32::MAX, f32::MIN, 16_777_217.0];

/// A float of any size: every pattern of bits that is a number is as likely as every other.
fn double(random: &mut fastrand::Rng) -> f64 {
    std::iter::repeat_with(|| f64::from_bits(random.u64(..))).find(|float| float.is_finite()).unwrap()
}

fn single(random: &mut fastrand::Rng) -> f32 {
    std::iter::repeat_with(|| f32::from_bits(random.u32(..))).find(|float| float.is_finite()).unwrap()
}

impl Numbers {
    fn extreme(n: usize) -> Self {
        let (double, single) = (DOUBLES[n % DOUBLES.len()], SINGLES[n % SINGLES.len()]);
        let rates = [(u8::MIN, double), (u8::MAX, -double)].into();
        let exact = if n.is_multiple_of(2) { Amount::Exact(i128::MIN) } else { Amount::None };
        Self {
            unsigned: (u8::MAX, u16::MAX, u32::MAX, u64::MAX, u128::MAX),
            signed: (i8::MIN, i16::MIN, i32::MIN, i64::MIN, i128::MIN),
            single,
            double,
            perhaps: (!n.is_multiple_of(3)).then_some(double),
            many: DOUBLES.iter().copied().zip(SINGLES.into_iter().cycle()).collect(),
            array: [double; 3],
            nested: Amount::In { currency: u64::MAX, amount: Box::new(exact), rates },
            wide_keys: [(0, double), (u128::MAX, -double)].into(),
            small_keys: [(i64::MIN, Some(u128::MAX)), (i64::MAX, None)].into(),
        }
    }

    fn random(random: &mut fastrand::Rng) -> Self {
        let amount = match random.u8(..3) {
            0 => Amount::Exact(random.i128(..)),
            1 => Amount::Rate(double(random)),
            _ => Amount::Range(double(random), single(random)),
        };
        let rates = (0..3).map(|key| (key, double(random))).collect();
        Self {
            unsigned: (random.u8(..), random.u16(..), random.u32(..), random.u64(..), random.u128(..)),
            signed: (random.i8(..), random.i16(..), random.i32(..), random.i64(..), random.i128(..)),
            single: single(random),
            double: double(random),
            perhaps: random.bool().then(|| double(random)),
            // Amounts as people have them, too: few digits before the point, and the rest by computing.
            many: (0..4).map(|_| (random.f64() * 1e4 * 1.1 + 0.1, random.f32())).collect(),
            array: [double(random), double(random), double(random)],
            nested: Amount::In { currency: random.u64(..), amount: Box::new(amount), rates },
            wide_keys: (0..3).map(|_| (random.u128(..), double(random))).collect(),
            small_keys: (0..3).map(|_| (random.i64(..), Some(random.u128(..)))).collect(),
        }
    }

    /// Extreme ones, and random ones.
    fn all() -> Vec<Self> {
        let mut random = fastrand::Rng::with_seed(12);
        let extreme = (0..DOUBLES.len() * 2).map(Self::extreme);
        extreme.chain((0..300).map(|_| Self::random(&mut random))).collect()
    }

    /// As it is told. A map that is in no order is told in one.
    fn told(&self) -> String {
        let mut one = self.clone();
        let rates: BTreeMap<u8, f64> = match &mut one.nested {
            Amount::In { rates, .. } => std::mem::take(rates).into_iter().collect(),
            _ => BTreeMap::new(),
        };
        format!("{one:?} {rates:?}")
    }
}

/// What was seen where.
type Seen = Arc<Mutex<Vec<(&'static str, String)>>>;

fn note(seen: &Seen, place: &'static str, numbers: &Numbers) {
    seen.lock().unwrap().push((place, numbers.told()));
}

/// Hands its input from step to step, and turns back or not.
struct InProcess;

impl Saga for InProcess {
    const NAME: &'static str = "numbers";
    const VERSION: u32 = 1;
    type Input = (Numbers, bool);
    type Output = Numbers;
    type Deps = Seen;

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, Numbers> {
        let first = saga.compensatable("first").run(first).compensate(undo_first);
        saga.pivot("second").reads(first).run(second)
    }
}

async fn first(seen: Cx<Seen>, (numbers, _): (Numbers, bool)) -> Result<Numbers, StepError> {
    note(&seen, "input", &numbers);
    Ok(numbers)
}

async fn undo_first(seen: CompensationCx<Seen>, _: (Numbers, bool), output: Option<Numbers>) -> Result<(), StepError> {
    note(&seen, "output, undone", &output.expect("it is known"));
    Ok(())
}

async fn second(seen: Cx<Seen>, (_, goes_on): (Numbers, bool), read: Numbers) -> Result<Numbers, StepError> {
    note(&seen, "output, read", &read);
    if goes_on { Ok(read) } else { Err(StepError::fail("no")) }
}

#[tokio::test(start_paused = true)]
async fn numbers_pass_from_step_to_step_bit_for_bit() {
    let seen = Seen::default();
    let engine =
        Engine::builder(MemoryStore::default()).register::<InProcess>(seen.clone()).unwrap().start().await.unwrap();
    for (n, numbers) in Numbers::all().into_iter().enumerate() {
        let goes_on = !n.is_multiple_of(3);
        let saga = engine.sagas::<InProcess>().submit(n.to_string(), (numbers.clone(), goes_on)).await.unwrap();
        let told = numbers.told();
        match saga.outcome().await.unwrap() {
            Outcome::Completed(output) => assert_eq!(output.told(), told),
            other => assert!(!goes_on && matches!(other, Outcome::RolledBack(_)), "{other:?}"),
        }
        let last = if goes_on { vec![] } else { vec![("output, undone", told.clone())] };
        let expected = [vec![("input", told.clone()), ("output, read", told)], last].concat();
        assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), expected);
    }
}

macro_rules! command {
    ($name:ident($field:ty) -> $reply:ty, $kind:literal) => {
        #[derive(Debug, Serialize, Deserialize)]
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
command!(Charge((Numbers, bool)) -> Numbers, "bank.charge.v1");

/// The same by commands and replies.
struct ByCommand;

impl Saga for ByCommand {
    const NAME: &'static str = "numbers-by-command";
    const VERSION: u32 = 1;
    type Input = (Numbers, bool);
    type Output = Numbers;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, Numbers> {
        let first = saga
            .compensatable("first")
            .command(|(numbers, _)| Reserve(numbers))
            .compensate_command(|_, numbers| Release(numbers));
        saga.pivot("second").reads(first).command(|(_, goes_on), numbers| Charge((numbers, goes_on)))
    }
}

async fn reserve(seen: CommandCx<Seen>, _: &mut (), Reserve(numbers): Reserve) -> Result<Numbers, StepError> {
    note(&seen, "command", &numbers);
    Ok(numbers)
}

async fn release(seen: CommandCx<Seen>, _: &mut (), Release(numbers): Release) -> Result<(), StepError> {
    note(&seen, "reply, in an undo", &numbers.expect("it is known"));
    note(&seen, "reply, kept", &seen.kept::<Numbers>()?.expect("it was kept"));
    Ok(())
}

async fn charge(seen: CommandCx<Seen>, _: &mut (), Charge((numbers, goes_on)): Charge) -> Result<Numbers, StepError> {
    note(&seen, "reply, in a command", &numbers);
    if goes_on { Ok(numbers) } else { Err(StepError::fail("no")) }
}

#[tokio::test(start_paused = true)]
async fn numbers_pass_through_commands_and_replies_bit_for_bit() {
    let (seen, transport) = (Seen::default(), Arc::new(LocalTransport::default()) as Arc<dyn Transport>);
    let bank = Participant::new("bank", MemoryInbox::default(), seen.clone()).on(reserve).on_undo(release).on(charge);
    let bank = bank.start(transport.clone()).await.unwrap();
    let builder = Engine::builder(MemoryStore::default()).transport("shop", transport);
    let engine = builder.register::<ByCommand>(()).unwrap().start().await.unwrap();
    for (n, numbers) in Numbers::all().into_iter().enumerate() {
        let goes_on = !n.is_multiple_of(3);
        let saga = engine.sagas::<ByCommand>().submit(n.to_string(), (numbers.clone(), goes_on)).await.unwrap();
        let told = numbers.told();
        match saga.outcome().await.unwrap() {
            Outcome::Completed(output) => assert_eq!(output.told(), told),
            other => assert!(!goes_on && matches!(other, Outcome::RolledBack(_)), "{other:?}"),
        }
        let places: &[&str] = match goes_on {
            true => &["command", "reply, in a command"],
            false => &["command", "reply, in a command", "reply, in an undo", "reply, kept"],
        };
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.iter().map(|(place, _)| *place).collect::<Vec<_>>(), places);
        seen.iter().for_each(|(place, seen)| assert_eq!(*seen, told, "{place}"));
    }
    bank.stop().await;
}

#[test]
fn what_json_has_no_number_for_is_refused_where_it_is_written() {
    #[derive(Serialize)]
    enum Deep {
        Tuple(u8, Option<f64>),
        Struct { of: BTreeMap<u8, [f32; 2]> },
    }
    let refused = |written: Result<Encoded, saga_core::CodecError>| {
        let error = written.unwrap_err().to_string();
        assert!(error.contains("cannot be written as JSON: JSON has no number for"), "{error}");
    };
    for float in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let small = [0.0, float as f32];
        refused(Encoded::of(&float));
        refused(Encoded::of(&Some(float)));
        refused(Encoded::of(&(None::<()>, vec![Some(1.0), Some(float)])));
        refused(Encoded::of(&Deep::Tuple(1, Some(float))));
        refused(Encoded::of(&Deep::Struct { of: [(7, small)].into() }));
        refused(Encoded::of(&BTreeMap::from([("a", (None::<u8>, float))])));
    }
    // `null` itself is none, wherever it stands.
    let nulls = (None::<f64>, (), "null", [Some(1.5), None], Encoded::null(), BTreeMap::from([("null", None::<u128>)]));
    assert_eq!(Encoded::of(&nulls).unwrap().as_str(), r#"[null,null,"null",[1.5,null],null,{"null":null}]"#);
}

/// A step that returns what cannot be kept: as it is, or as an `Option`, of which a reader would have made `None`.
struct Broken;

impl Saga for Broken {
    const NAME: &'static str = "broken";
    const VERSION: u32 = 1;
    type Input = f64;
    type Output = (Option<f64>,);
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, (Option<f64>,)> {
        let rate = saga.effect_free("rate").run(async |_: Cx<()>, by: f64| Ok((Some(1.0 / by),)));
        saga.pivot("pay").reads(rate).run(async |_: Cx<()>, _: f64, rate: (Option<f64>,)| Ok(rate))
    }
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_not_a_number_is_its_own_steps_error() {
    let engine = Engine::builder(MemoryStore::default()).register::<Broken>(()).unwrap().start().await.unwrap();
    let broken = engine.sagas::<Broken>();
    let Outcome::Parked(why) = broken.submit("by nothing", 0.0).await.unwrap().outcome().await.unwrap() else {
        panic!("it is not parked")
    };
    assert_eq!(why.step.as_deref(), Some("rate"));
    assert!(
        why.reason.ends_with("cannot be written as JSON: JSON has no number for inf, and it cannot be read again"),
        "{why}"
    );
    let refused = broken.submit("by NaN", f64::NAN).await.unwrap_err();
    assert!(matches!(refused, Error::Codec(_)), "{refused}");
    assert_eq!(
        refused.to_string(),
        "f64 cannot be written as JSON: JSON has no number for NaN, and it cannot be read again"
    );
}

command!(Quote(f64) -> f64, "bank.quote.v1");

/// Sends `1 / input`, and is answered with the root of that.
struct Quoted;

impl Saga for Quoted {
    const NAME: &'static str = "quoted";
    const VERSION: u32 = 1;
    type Input = f64;
    type Output = f64;
    type Deps = ();

    fn define(saga: &mut SagaBuilder<Self>) -> Out<Self, f64> {
        saga.pivot("quote").command(|by: f64| Quote(1.0 / by))
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_or_a_reply_that_is_not_a_number_is_an_error_where_it_is_made() {
    let transport = Arc::new(LocalTransport::default()) as Arc<dyn Transport>;
    let root = async |_: CommandCx<()>, _: &mut (), Quote(of): Quote| Ok(of.sqrt());
    let bank = Participant::new("bank", MemoryInbox::default(), ()).on(root).start(transport.clone()).await.unwrap();
    let builder = Engine::builder(MemoryStore::default()).transport("shop", transport);
    let engine = builder.register::<Quoted>(()).unwrap().start().await.unwrap();
    let outcome = async |by: f64| engine.sagas::<Quoted>().submit(by.to_string(), by).await.unwrap().outcome().await;
    assert_eq!(outcome(0.25).await.unwrap(), Outcome::Completed(2.0));
    // Not sent, and no attempt follows: a person has to look.
    let Outcome::Parked(why) = outcome(0.0).await.unwrap() else { panic!("it is not parked") };
    assert!(
        why.reason
            .ends_with("Quote cannot be written as JSON: JSON has no number for inf, and it cannot be read again"),
        "{why}"
    );
    // Nothing happened: what the participant wrote was rolled back.
    let Outcome::RolledBack(why) = outcome(-1.0).await.unwrap() else { panic!("it is not rolled back") };
    assert_eq!(
        why.to_string(),
        "quote: f64 cannot be written as JSON: JSON has no number for NaN, and it cannot be read again"
    );
    bank.stop().await;
}
