use std::time::Duration;
use tokio::sync::Semaphore;

/// How an engine behaves. Every field has a default that suits a service on a small machine; zero counts as the least that makes sense.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// How many sagas this process keeps in memory and works on at once; the others wait in the store. Those of one
    /// definition come to about three quarters of that: what hangs leaves room for others. Defaults to 2048.
    pub sagas: usize,
    /// How many bytes the sagas in memory may have: their inputs, outputs and journals. When there are more, this
    /// process takes none in until some have ended. Those of one definition are taken in until they have three
    /// quarters of it; and while they have less than a 64th, whatever the others have. Defaults to 256 MiB.
    pub memory: usize,
    /// How many attempts (of steps and compensations) run at once. Those of one step come to three quarters of
    /// that at most, if it is four or more: a participant that hangs stops no other. Defaults to 1024.
    pub attempts: usize,
    /// How long this process may be silent before others take over its sagas. A shorter lease recovers sooner, a longer one
    /// forgives longer pauses. It beats three times a lease, and every two seconds at least. Defaults to 15 seconds.
    pub lease: Duration,
    /// How often it looks for due sagas, mail and ends of sagas that run elsewhere. Hints make that quicker, this makes it
    /// certain. Defaults to 500 milliseconds.
    pub poll: Duration,
    /// A saga whose next timer is further away than this is put back into the store until then; one that waits for a reply, when it
    /// has waited for so long. Defaults to one second.
    pub hold: Duration,
    /// How many statements that write journals are under way at once, at most: one as long as it keeps up, for all that
    /// waits shares it. What is heavy has one more, and so has what another transaction holds up. Defaults to 3.
    pub committers: usize,
    /// How many sagas one statement writes at most. Defaults to 500.
    pub batch: usize,
    /// How many bytes an input or an output may have, encoded. Defaults to 1 MiB.
    pub payload: usize,
    /// How long a call of a user (submit, cancel, ..) tries to reach the store. Defaults to 10 seconds.
    pub patience: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sagas: 2048,
            memory: 256 << 20,
            attempts: 1024,
            lease: Duration::from_secs(15),
            poll: Duration::from_millis(500),
            hold: Duration::from_secs(1),
            committers: 3,
            batch: 500,
            payload: 1 << 20,
            patience: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Zero of anything would mean to do nothing, for ever or all the time.
    pub(crate) fn make_sensible(&mut self) {
        self.sagas = self.sagas.clamp(1, Semaphore::MAX_PERMITS);
        self.memory = self.memory.max(1);
        self.attempts = self.attempts.clamp(1, Semaphore::MAX_PERMITS);
        self.committers = self.committers.clamp(1, 64);
        self.batch = self.batch.clamp(1, 10_000);
        self.lease = self.lease.max(Duration::from_millis(50));
        self.poll = self.poll.max(Duration::from_millis(1));
    }
}
