//! Hints between processes: LISTEN and NOTIFY, off the path of any write.
//!
//! A NOTIFY in every transaction costs a factor of three to four in throughput, since its commit takes a lock that all share. So
//! hints are gathered and sent at most every [`PAUSE`], in a transaction of their own that waits for no disk.
//!
//! A connection that listens is silent when nothing happens, and when it is dead. So who has heard nothing for [a
//! while](QUIET) says something itself, and listens anew if it does not hear that: one word a while keeps all processes
//! certain.

use crate::connection::{Connections, Keeps, Route, in_time};
use saga_core::store::Hint;
use sqlx::{
    SqlStr,
    postgres::{PgListener, PgPoolOptions},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast},
    time::{sleep, timeout},
};
use uuid::Uuid;

const PAUSE: Duration = Duration::from_millis(10);
/// The pause before listening again when the connection broke.
const AGAIN: Duration = Duration::from_secs(1);
/// Nothing was heard for so long.
const QUIET: Duration = Duration::from_secs(1);
/// How long sending may take.
const PATIENCE: Duration = Duration::from_secs(2);
const KINDS: [(Hint, u8, char); 3] = [(Hint::Work, 1, 'w'), (Hint::Mail, 2, 'm'), (Hint::Ended, 4, 'e')];
/// Among the bits of the kinds: only to be heard.
const ECHO: u8 = 8;

#[derive(Debug)]
pub(crate) struct Hints {
    heard: broadcast::Sender<Hint>,
    unsent: AtomicU8,
    some: Notify,
    /// A number behind the letters: what we sent we have heard already.
    sender: String,
}

impl Hints {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            heard: broadcast::channel(64).0,
            unsent: AtomicU8::new(0),
            some: Notify::new(),
            sender: Uuid::new_v4().as_u128().to_string(),
        })
    }

    pub(crate) fn send(&self, hint: Hint) {
        self.send_bits(KINDS.iter().find(|(kind, ..)| *kind == hint).map_or(0, |(_, bits, _)| *bits));
    }

    fn send_bits(&self, bits: u8) {
        if self.unsent.fetch_or(bits, Ordering::AcqRel) & bits == 0 {
            self.some.notify_one();
        }
    }

    pub(crate) fn hear(&self) -> broadcast::Receiver<Hint> {
        self.heard.subscribe()
    }

    /// Sends what was gathered, for ever. This process hears it at once.
    pub(crate) async fn gather(self: Arc<Self>, route: Arc<Route>, notify: SqlStr, channel: String) {
        let connection = Connections::new(route, 1, PATIENCE);
        loop {
            self.some.notified().await;
            let unsent = self.unsent.swap(0, Ordering::AcqRel);
            if unsent == 0 {
                continue;
            }
            let kinds = || KINDS.iter().filter(|(_, bits, _)| unsent & bits != 0);
            for (hint, ..) in kinds() {
                let _ = self.heard.send(*hint);
            }
            let letters: String = kinds().map(|(.., letter)| letter).collect();
            let payload = format!("{letters}{}", self.sender);
            if let Err(error) = connection.rows(connection.query(&notify).bind(&channel).bind(payload)).await {
                tracing::debug!(%error, "no hint was sent: others will poll");
            }
            sleep(PAUSE).await;
        }
    }

    /// Passes on what other processes send, for ever. Not where sessions do not last: there is nobody to speak to.
    pub(crate) async fn listen(self: Arc<Self>, route: Arc<Route>, channel: String) {
        while route.keeps() == Keeps::Sessions {
            let Err(reason) = self.listen_once(&route, &channel).await;
            tracing::debug!(reason, "hints are not heard: polling meanwhile");
            sleep(AGAIN).await;
        }
    }

    async fn listen_once(&self, route: &Route, channel: &str) -> Result<Never, String> {
        let server = route.primary().await.map_err(|error| error.to_string())?;
        let told = |error: sqlx::Error| error.to_string();
        // A pool of one: that is how the library makes a listener.
        let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let pool = route.settings().on(pool).connect_lazy_with(server);
        let mut listener = in_time(PgListener::connect_with(&pool)).await.map_err(told)?;
        listener.eager_reconnect(false);
        in_time(listener.listen(channel)).await.map_err(told)?;
        // What was said meanwhile was not heard.
        for (hint, ..) in KINDS {
            let _ = self.heard.send(hint);
        }
        let mut asked = false;
        loop {
            match timeout(QUIET.mul_f64(1.0 + fastrand::f64()), listener.try_recv()).await {
                Ok(Ok(Some(heard))) => {
                    asked = false;
                    self.pass_on(heard.payload());
                }
                Ok(Ok(None)) => return Err("the connection broke".into()),
                Ok(Err(error)) => return Err(told(error)),
                Err(_) if asked => return Err("it does not hear itself".into()),
                Err(_) => {
                    asked = true;
                    self.send_bits(ECHO);
                }
            }
        }
    }

    fn pass_on(&self, payload: &str) {
        let digits = payload.find(|letter: char| letter.is_ascii_digit());
        let (letters, sender) = payload.split_at(digits.unwrap_or(payload.len()));
        for (hint, _, letter) in KINDS {
            if sender != self.sender && letters.contains(letter) {
                let _ = self.heard.send(hint);
            }
        }
    }
}

/// There is none.
enum Never {}
