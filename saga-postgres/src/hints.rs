//! Hints between processes: LISTEN and NOTIFY, off the path of any write.
//!
//! A NOTIFY in every transaction costs a factor of three to four in throughput, since its commit takes a lock that all share. So
//! hints are gathered and sent at most every [`PAUSE`], in a transaction of their own that waits for no disk.

use saga_core::store::Hint;
use sqlx::{PgPool, SqlStr, postgres::PgListener};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast},
    time::sleep,
};
use uuid::Uuid;

const PAUSE: Duration = Duration::from_millis(10);
/// The pause before listening again when the connection broke.
const AGAIN: Duration = Duration::from_secs(1);
const KINDS: [(Hint, u8, char); 3] = [(Hint::Work, 1, 'w'), (Hint::Mail, 2, 'm'), (Hint::Ended, 4, 'e')];

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
        let bits = KINDS.iter().find(|(kind, ..)| *kind == hint).map_or(0, |(_, bits, _)| *bits);
        if self.unsent.fetch_or(bits, Ordering::AcqRel) & bits == 0 {
            self.some.notify_one();
        }
    }

    pub(crate) fn hear(&self) -> broadcast::Receiver<Hint> {
        self.heard.subscribe()
    }

    /// Sends what was gathered, for ever. This process hears it at once.
    pub(crate) async fn gather(self: Arc<Self>, pool: PgPool, notify: SqlStr, channel: String) {
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
            if let Err(error) = sqlx::query(notify.clone()).bind(&channel).bind(payload).execute(&pool).await {
                tracing::debug!(%error, "no hint was sent: others will poll");
            }
            sleep(PAUSE).await;
        }
    }

    /// Passes on what other processes send, for ever.
    pub(crate) async fn listen(self: Arc<Self>, pool: PgPool, channel: String) {
        loop {
            let listened: Result<(), sqlx::Error> = async {
                let mut listener = PgListener::connect_with(&pool).await?;
                listener.listen(&channel).await?;
                loop {
                    let heard = listener.recv().await?;
                    let digits = heard.payload().find(|letter: char| letter.is_ascii_digit());
                    let (letters, sender) = heard.payload().split_at(digits.unwrap_or(heard.payload().len()));
                    for (hint, _, letter) in KINDS {
                        if sender != self.sender && letters.contains(letter) {
                            let _ = self.heard.send(hint);
                        }
                    }
                }
            }
            .await;
            if let Err(error) = listened {
                tracing::debug!(%error, "hints are not heard: polling meanwhile");
            }
            sleep(AGAIN).await;
        }
    }
}
