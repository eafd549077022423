//! A process of its own: this very program, called as `stress node ..`. Kill it whenever you like.

use crate::{
    Result,
    purchase::{PARTICIPANTS, Purchase, SHOP, participant},
};
use rustix::process::{Pid, Signal, kill_process};
use saga_core::{Engine, transport::Transport};
use saga_kafka::KafkaTransport;
use saga_postgres::{PgInbox, PgStore};
use sqlx::postgres::PgPoolOptions;
use std::{process::Stdio, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// It runs the sagas.
    Orchestrator,
    /// It is all the participants at once.
    Participants,
}

/// Where a node finds the others.
#[derive(Clone, Debug, clap::Args)]
pub struct Places {
    #[arg(long, env = "KAFKA_BROKERS")]
    pub brokers: String,
    /// The orchestrator's database.
    #[arg(long)]
    pub sagas: String,
    /// The participants' database.
    #[arg(long)]
    pub ledger: String,
}

/// The way to the broker.
pub fn transport(brokers: &str) -> Result<Arc<dyn Transport>> {
    // A node that was killed is found out soon: there will be many.
    Ok(Arc::new(KafkaTransport::builder(brokers).set_consumer("session.timeout.ms", "6000").build()?))
}

/// The engine as all of its nodes have it.
pub async fn engine(places: &Places, transport: Arc<dyn Transport>) -> Result<Engine> {
    let store = PgStore::connect(&places.sagas).await?;
    let builder = Engine::builder(store).transport(SHOP, transport).register::<Purchase>(())?;
    Ok(builder.configure(|config| config.lease = Duration::from_secs(3)).start().await?)
}

/// The barrier as all participants have it.
pub async fn inbox(places: &Places) -> Result<PgInbox> {
    Ok(PgInbox::new(PgPoolOptions::new().max_connections(12).connect(&places.ledger).await?))
}

/// Runs until it is told to stop.
pub async fn run(role: Role, places: &Places) -> Result<()> {
    // Handlers panic on purpose here.
    std::panic::set_hook(Box::new(|_| ()));
    // Its parent's end closes stdin: then nobody needs it any more.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(1);
    });
    let transport = transport(&places.brokers)?;
    let mut terminate = signal(SignalKind::terminate())?;
    match role {
        Role::Orchestrator => {
            let engine = engine(places, transport).await?;
            println!("ready");
            terminate.recv().await;
            engine.shutdown(Duration::from_secs(5)).await;
        }
        Role::Participants => {
            let inbox = inbox(places).await?;
            let mut running = vec![];
            for name in PARTICIPANTS {
                running.push(participant(name, inbox.clone()).start(transport.clone()).await?);
            }
            println!("ready");
            terminate.recv().await;
            for participating in running {
                participating.stop().await;
            }
        }
    }
    Ok(())
}

/// A node that runs.
pub struct Node {
    role: Role,
    places: Places,
    child: Child,
    /// Open for as long as the node is wanted; not in `child`, which closes it when it is waited for.
    _stdin: Option<ChildStdin>,
}

impl Node {
    /// Starts one, and waits until it is ready.
    pub async fn start(role: Role, places: &Places) -> Result<Self> {
        let name = match role {
            Role::Orchestrator => "orchestrator",
            Role::Participants => "participants",
        };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["node", name, "--brokers", &places.brokers, "--sagas", &places.sagas, "--ledger", &places.ledger])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("a child without stdout")?;
        let ready = timeout(Duration::from_secs(120), BufReader::new(stdout).lines().next_line()).await??;
        ready.ok_or_else(|| format!("a node ({name}) ended before it was ready"))?;
        Ok(Self { role, places: places.clone(), child, _stdin: stdin })
    }

    /// `kill -9`.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Takes the place of one that was killed.
    pub async fn start_again(&mut self) -> Result<()> {
        let role = self.role;
        *self = Self::start(role, &self.places.clone()).await?;
        Ok(())
    }

    /// Asks it to hand over, and sees to it.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(id) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            kill_process(id, Signal::TERM)?;
        }
        if timeout(Duration::from_secs(60), self.child.wait()).await.is_err() {
            self.kill().await?;
            return Err("a node did not hand over within a minute".into());
        }
        Ok(())
    }
}
