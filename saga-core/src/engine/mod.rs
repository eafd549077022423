//! The driver around the [state machine](crate::machine): runs sagas inside the user's own service.

mod attempt;
mod committer;
mod config;
mod drive;
mod heart;
mod here;
mod journal;
mod lease;
mod messages;
mod metrics;
mod news;
mod outcome;
mod outcomes;
mod rarely;
mod sagas;
mod shares;
mod snapshot;
mod unread;
mod weight;
mod worker;

pub use config::Config;
pub use outcome::{Outcome, Why};
pub use sagas::{Error, History, Sagas, Started};

use crate::{
    BuildError, Definition, Encoded, Saga, SagaId,
    definition::{Bound, Process},
    machine::{State, Status},
    message::Reply,
    store::{self, DefinitionId, Hint, Mail, Record, Start, Store, StoreError},
    trace::Tracing,
    transport::{Consumer, Transport},
};
use committer::Committer;
use drive::Drive;
use futures::{
    FutureExt,
    future::{BoxFuture, join},
};
use heart::Leases;
use lease::Lease;
use messages::Messages;
use metrics::Metrics;
use outcome::Ended;
use outcomes::Outcomes;
use shares::Attempts;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use unread::Unread;
use weight::{Memory, Weight};

/// For what was told to stop at once.
const A_MOMENT: Duration = Duration::from_secs(1);

/// Runs sagas: embed one in each process of your service, on as many nodes as you like.
///
/// Dropped without [`shutdown`](Self::shutdown) it stops at once, as if the process had died: nothing is lost, and other processes take over
/// when its lease has lapsed.
pub struct Engine {
    shared: Arc<Shared>,
    /// Receives the participants' replies.
    replies: Option<Box<dyn Consumer>>,
}

impl Engine {
    /// Begins with the store that all processes share.
    pub fn builder(store: impl Store) -> EngineBuilder {
        EngineBuilder {
            store: Arc::new(store),
            processes: HashMap::new(),
            fingerprints: vec![],
            messages: None,
            config: Config::default(),
        }
    }

    /// The sagas of one type. The type need not be registered here: a process that only starts sagas has no use for its steps.
    pub fn sagas<S: Saga>(&self) -> Sagas<S> {
        Sagas::new(self.shared.clone())
    }

    /// Waits until a saga has ended or is parked, wherever it runs, and gives its output as it was written: for whoever
    /// does not know its type. Its definition has to be registered here.
    ///
    /// # Errors
    /// [`Error::NoSuchSaga`]; [`Error::NotRegistered`], which names the version; [`Error::WaitsInStep`] in a step of
    /// this engine; [`Error::Journal`]; [`Error::Store`].
    pub async fn outcome(&self, saga: SagaId) -> Result<Outcome<Encoded>, Error> {
        self.shared.may_wait(saga)?;
        let shape = |record: &Record| {
            let found = || format!("{} v{}", record.name, record.version);
            self.shared.shape_of(record).ok_or_else(|| Error::NotRegistered { saga, found: found() })
        };
        Ok(self.shared.end_of(saga, shape).await?.untyped())
    }

    /// Hands over: claims nothing more, starts no attempt any more, lets those under way end for as long as `grace`, journals them, and releases
    /// every saga for other processes to take at once. Attempts that outlast the grace are dropped, with an unknown outcome.
    ///
    /// Ends within `grace`, [`Config::patience`] and a second, whatever does not answer: what could not be written or
    /// released by then is taken over by others when the lease has lapsed.
    pub async fn shutdown(mut self, grace: Duration) {
        let shared = self.shared.clone();
        let over = Instant::now() + grace;
        let end = over + shared.config.patience;
        shared.draining.cancel();
        shared.drives.close();
        let replies = self.replies.take();
        let no_more_replies = async {
            if let Some(replies) = replies {
                replies.stop().await;
            }
        };
        if timeout_at(over, join(no_more_replies, shared.drives.wait())).await.is_err() {
            shared.grace_over.cancel();
            let _ = timeout_at(end, shared.drives.wait()).await;
        }
        let (worker, sagas) = (shared.lease().worker(), shared.in_memory().len());
        let leave = async {
            // What is owned even so (the answer to its claim was lost, say) is lost by no death.
            match shared.store.returned(worker).await {
                Ok(()) | Err(StoreError::Contention(_)) => shared.store.leave(worker).await,
                Err(error) => Err(error),
            }
        };
        match timeout_at(end, leave).await {
            Ok(Ok(())) => tracing::info!(%worker, sagas, "left"),
            Ok(Err(error)) => tracing::warn!(%error, %worker, "cannot leave: others notice when the lease has lapsed"),
            Err(_) => tracing::warn!(%worker, "no answer to the leave: others notice when the lease has lapsed"),
        }
        if timeout_at(end + A_MOMENT, self.kill()).await.is_err() {
            tracing::warn!("something of the engine does not end: a step that blocks its thread, perhaps");
        }
    }

    /// Stops at once, as if the process had died, and returns when nothing runs any more.
    pub async fn kill(mut self) {
        self.replies = None;
        self.shared.killed.cancel();
        self.shared.drives.close();
        self.shared.tasks.close();
        self.shared.drives.wait().await;
        self.shared.tasks.wait().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.killed.cancel();
    }
}

/// An engine that is being put together.
pub struct EngineBuilder {
    store: Arc<dyn Store>,
    processes: HashMap<DefinitionId, Arc<dyn Process>>,
    fingerprints: Vec<(&'static str, u32, String)>,
    messages: Option<Arc<Messages>>,
    config: Config,
}

impl EngineBuilder {
    /// Makes this process run sagas of a type, with these dependencies. Register old versions as well, as types of their own, until their last saga has
    /// ended.
    ///
    /// # Errors
    /// A [`BuildError`] that names the step and the rule, when the definition breaks one.
    pub fn register<S: Saga>(mut self, deps: impl Into<Arc<S::Deps>>) -> Result<Self, BuildError> {
        let definition = Definition::<S>::build()?;
        self.fingerprints.push((S::NAME, S::VERSION, definition.graph().fingerprint()));
        let id = DefinitionId { name: S::NAME.into(), version: S::VERSION };
        self.processes.insert(id, Arc::new(Bound { definition, deps: deps.into() }));
        Ok(self)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn register_process<S: Saga>(mut self, process: Arc<dyn Process>) -> Self {
        self.fingerprints.push((S::NAME, S::VERSION, process.graph().fingerprint()));
        self.processes.insert(DefinitionId { name: S::NAME.into(), version: S::VERSION }, process);
        self
    }

    /// Sends the commands of this engine's sagas over `transport`, in the name of a service: the same on all of its nodes. Replies come to the topic
    /// `<service>.replies`, which the nodes consume as the group `<service>`.
    pub fn transport(mut self, service: impl Into<String>, transport: Arc<dyn Transport>) -> Self {
        self.messages = Some(Arc::new(Messages {
            service: service.into(),
            tracing: Tracing::default().over(transport.system()),
            transport,
        }));
        self
    }

    /// The first step that sends a command, if there is one.
    fn commanding(&self) -> Option<(String, String)> {
        self.processes.iter().find_map(|(id, process)| {
            let node = process.graph().nodes().iter().find(|node| node.command.is_some())?;
            Some((id.name.clone(), node.name.to_string()))
        })
    }

    /// Changes the [`Config`].
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Joins the other processes and begins to work.
    ///
    /// # Errors
    /// [`Error::ChangedGraph`] when a registered version was stored with another graph; [`Error::NoTransport`] when a saga sends commands and there is
    /// nothing to send them with; [`Error::Transport`] when replies cannot be received; [`Error::Store`] when the store cannot be reached.
    pub async fn start(mut self) -> Result<Engine, Error> {
        self.config.make_sensible();
        let commanding = self.commanding();
        if let (Some((saga, step)), None) = (&commanding, &self.messages) {
            return Err(Error::NoTransport { saga: saga.clone(), step: step.clone() });
        }
        self.store.ready().await?;
        for (name, version, now) in self.fingerprints {
            let stored = self.store.register(&DefinitionId { name: name.into(), version }, &now).await?;
            if stored != now {
                return Err(Error::ChangedGraph { name, version, stored, now });
            }
        }
        let (tasks, killed) = (TaskTracker::new(), CancellationToken::new());
        let definitions: Vec<DefinitionId> = self.processes.keys().cloned().collect();
        let mut shared = Shared {
            committer: Committer::spawn(&self.store, &self.config, &tasks, &killed),
            store: self.store,
            memory: Arc::new(Memory::new(self.config.sagas, self.config.memory, &definitions)),
            definitions,
            processes: self.processes,
            lease: Mutex::new(Lease::new(crate::WorkerId::generate(), Instant::now())),
            leases: Leases::new(),
            in_memory: Mutex::default(),
            attempts: Arc::new(Attempts::new(self.config.attempts)),
            unread: Unread::default(),
            quarantine: Arc::new(Semaphore::new(drive::QUARANTINE as usize)),
            outcomes: Outcomes::default(),
            tracing: Tracing::default(),
            metrics: Metrics::new(),
            messages: self.messages,
            work: Notify::new(),
            mailed: AtomicBool::new(true),
            mail: Notify::new(),
            config: self.config,
            drives: TaskTracker::new(),
            tasks,
            killed,
            draining: CancellationToken::new(),
            grace_over: CancellationToken::new(),
        };
        let lease = worker::join(&shared).await?;
        shared.lease = Mutex::new(lease.clone());
        let shared = Arc::new(shared);
        heart::start(&shared)?;
        shared.leases.keep(lease);
        shared.spawn(worker::follow_hints(shared.clone()));
        shared.spawn(worker::stay_alive(shared.clone()));
        shared.spawn(outcomes::watch_outcomes(shared.clone()));
        if !shared.definitions.is_empty() {
            // Whoever hands over waits for what is being claimed.
            shared.spawn_drive(worker::find_work(shared.clone()).boxed());
            shared.spawn(worker::bring_mail(shared.clone()));
            shared.spawn(worker::take_over_from_the_dead(shared.clone()));
            shared.spawn(metrics::take_census(shared.clone()));
        }
        let mut engine = Engine { shared: shared.clone(), replies: None };
        if let (Some(_), Some(messages)) = (commanding, &shared.messages) {
            engine.replies = Some(messages::receive(shared.clone(), messages).await?);
        }
        Ok(engine)
    }
}

/// What the parts of one engine share.
pub(crate) struct Shared {
    store: Arc<dyn Store>,
    config: Config,
    definitions: Vec<DefinitionId>,
    processes: HashMap<DefinitionId, Arc<dyn Process>>,
    committer: Committer,
    lease: Mutex<Lease>,
    /// Those that are kept by a heartbeat.
    leases: Leases,
    /// The mailboxes of the sagas that are in memory, or about to be.
    in_memory: Mutex<HashMap<SagaId, Delivery>>,
    /// Room for sagas in memory.
    memory: Arc<Memory>,
    /// Room for attempts.
    attempts: Arc<Attempts>,
    /// Room for one saga that may be what kills its workers.
    quarantine: Arc<Semaphore>,
    /// What this release cannot read.
    unread: Unread,
    outcomes: Outcomes,
    tracing: Tracing,
    metrics: Metrics,
    /// How commands are sent; `None` when no saga sends any.
    messages: Option<Arc<Messages>>,
    /// There may be work to claim.
    work: Notify,
    /// And among it sagas that have mail.
    mailed: AtomicBool,
    /// There may be mail.
    mail: Notify,
    drives: TaskTracker,
    tasks: TaskTracker,
    killed: CancellationToken,
    draining: CancellationToken,
    grace_over: CancellationToken,
}

impl Shared {
    fn lease(&self) -> Lease {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_lease(&self, lease: Lease) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease.clone();
        self.leases.keep(lease);
    }

    fn in_memory(&self) -> MutexGuard<'_, HashMap<SagaId, Delivery>> {
        self.in_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_in_memory(&self, saga: SagaId) -> bool {
        self.in_memory().contains_key(&saga)
    }

    fn has_sagas_in_memory(&self) -> bool {
        !self.in_memory().is_empty()
    }

    /// Whether the saga is in memory. Otherwise it is claimed because of its mail.
    fn deliver(&self, mail: Mail) -> bool {
        let mut in_memory = self.in_memory();
        let Some(delivery) = in_memory.get_mut(&mail.saga) else { return false };
        // A poll brings again what the saga has not come to read yet.
        !delivery.under_way.insert(mail.message.clone()) || delivery.to.send(Box::new(Delivered::Letter(mail))).is_ok()
    }

    /// Hands a reply to its saga, past the mailbox, if the saga is in memory; else it comes back. What is returned is
    /// answered once what the reply changed is written. When the other end is dropped, or when that takes long, the reply
    /// has to go into the mailbox.
    fn hand(&self, message: &str, reply: Reply) -> Result<oneshot::Receiver<()>, Reply> {
        let in_memory = self.in_memory();
        let Some(delivery) = in_memory.get(&reply.id.saga) else { return Err(reply) };
        let ((heard, answered), message) = (oneshot::channel(), message.to_owned());
        let delivered = Box::new(Delivered::Reply { message, reply, heard });
        match delivery.to.send(delivered).map_err(|mpsc::error::SendError(delivered)| *delivered) {
            Err(Delivered::Reply { reply, .. }) => Err(reply),
            _ => Ok(answered),
        }
    }

    /// A saga as it stands, for as long as its lease holds: what is not known about it must not be guessed.
    async fn reread(&self, lease: &Lease, saga: SagaId) -> Option<Record> {
        while lease.holds() {
            match self.store.read(saga).await {
                Ok(record) => return record,
                Err(error) => tracing::warn!(%error, %saga, "cannot read the saga again"),
            }
            tokio::time::sleep(committer::AGAIN).await;
        }
        None
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.killed.clone().run_until_cancelled_owned(task));
    }

    fn spawn_drive(&self, drive: BoxFuture<'static, ()>) {
        self.drives.spawn(self.killed.clone().run_until_cancelled_owned(drive));
    }

    /// Makes a user's call again until the store has answered it, for as long as patience lasts.
    async fn patiently<T, C: Future<Output = Result<T, StoreError>>>(
        &self,
        call: impl Fn() -> C,
    ) -> Result<T, StoreError> {
        let patience = self.config.patience;
        let mut last = String::new();
        let answered = timeout(patience, async {
            loop {
                match call().await {
                    Err(StoreError::Unavailable(error) | StoreError::Contention(error)) => last = error,
                    answer => return answer,
                }
                tokio::time::sleep(committer::AGAIN).await;
            }
        });
        answered.await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!("no answer within {patience:?}; the last error: {last}")))
        })
    }

    /// Writes a saga, and runs it here if there is room.
    async fn submit(
        self: Arc<Self>,
        mut start: Start,
    ) -> Result<(store::Started, Option<watch::Receiver<Option<Ended>>>), StoreError> {
        let definition = DefinitionId { name: start.name.clone(), version: start.version };
        let lease = self.lease();
        let ready = !self.draining.is_cancelled() && lease.holds();
        let process = self.processes.get(&definition).filter(|_| ready).cloned();
        let room = process.and_then(|process| Some((process, self.memory.place(&definition)?)));
        let Some((process, weight)) = room else {
            let answer = self.committer.start(start).await?;
            if answer == store::Started::New {
                self.store.hint(Hint::Work);
            }
            return Ok((answer, None));
        };
        start.owner = Some(lease.worker());
        let (place, mailbox) = Place::take(&self, start.saga, weight);
        let answer = self.committer.start(start.clone()).await?;
        if answer != store::Started::New {
            return Ok((answer, None));
        }
        let record = Record {
            saga: start.saga,
            name: start.name,
            version: start.version,
            key: start.key,
            status: Status::Running,
            input: start.input,
            trace: start.trace,
            epoch: 1,
            lapses: 0,
            survived: vec![],
            age: Duration::ZERO,
            snapshot: None,
            journal: vec![],
            mail: vec![],
        };
        let (ended, end) = watch::channel(None);
        let state = State::new(process.graph());
        let drive = Drive::new(process, lease, record, state, mailbox, ended, place);
        self.spawn_drive(drive.run());
        Ok((answer, Some(end)))
    }
}

/// A saga's place in memory: room for it, and its mailbox. Given up on drop.
pub(crate) struct Place {
    shared: Arc<Shared>,
    saga: SagaId,
    mailbox: mpsc::UnboundedSender<Box<Delivered>>,
    weight: Weight,
}

impl Place {
    fn take(shared: &Arc<Shared>, saga: SagaId, weight: Weight) -> (Self, Mailbox) {
        let (sender, delivered) = mpsc::unbounded_channel();
        let mailbox = sender.clone();
        shared.in_memory().insert(saga, Delivery { to: sender, under_way: HashSet::new() });
        (Self { shared: shared.clone(), saga, mailbox, weight }, Mailbox { shared: shared.clone(), saga, delivered })
    }
}

/// What comes to a saga in memory.
pub(crate) enum Delivered {
    /// It is in the saga's mailbox.
    Letter(Mail),
    /// It is in no mailbox; who handed it over waits for it to be heard.
    Reply { message: String, reply: Reply, heard: oneshot::Sender<()> },
}

/// How it comes.
struct Delivery {
    to: mpsc::UnboundedSender<Box<Delivered>>,
    /// The letters that were sent and not received yet.
    under_way: HashSet<String>,
}

/// What is delivered to a saga in memory, in boxes: a channel keeps room for many. What it does not read is in the store still, for whoever claims it, or comes
/// there now.
pub(crate) struct Mailbox {
    shared: Arc<Shared>,
    saga: SagaId,
    delivered: mpsc::UnboundedReceiver<Box<Delivered>>,
}

impl Mailbox {
    async fn recv(&mut self) -> Option<Delivered> {
        let delivered = self.delivered.recv().await?;
        if let Delivered::Letter(mail) = &*delivered
            && let Some(delivery) = self.shared.in_memory().get_mut(&self.saga)
        {
            delivery.under_way.remove(&mail.message);
        }
        Some(*delivered)
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // Whatever is sent is sent under this lock.
        let in_memory = self.shared.in_memory();
        self.delivered.close();
        let unread = !self.delivered.is_empty();
        drop(in_memory);
        if unread {
            self.shared.store.hint(Hint::Mail);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // After a loss of the lease the saga may have been claimed anew before its old place was cleared: that one stays.
        let mut in_memory = self.shared.in_memory();
        if in_memory.get(&self.saga).is_some_and(|delivery| delivery.to.same_channel(&self.mailbox)) {
            in_memory.remove(&self.saga);
        }
    }
}
