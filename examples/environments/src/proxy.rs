//! A TCP proxy before the server: it can send new connections somewhere else, cut those that there are, forget them
//! without telling anybody, and be slow.

use crate::Result;
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
    time::sleep_until,
};

/// Who sleeps wakes up late by about so much, and may make up for it.
const TICK: Duration = Duration::from_millis(2);

/// A proxy that runs.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    upstream: AtomicU16,
    opened: AtomicU64,
    /// Connections before these numbers are forgotten, and cut.
    forgotten: watch::Sender<u64>,
    cut: watch::Sender<u64>,
    /// One for each direction.
    lines: [Line; 2],
}

/// What all connections share, in one direction.
struct Line {
    /// None passes as much as comes.
    bytes_per_s: Option<f64>,
    busy_until: Mutex<Instant>,
}

impl Line {
    fn new(bytes_per_s: Option<f64>) -> Self {
        Self { bytes_per_s, busy_until: Mutex::new(Instant::now()) }
    }

    /// Takes the time that so many bytes take. What is passed within a tick of the clock is passed at once.
    async fn pass(&self, bytes: usize) {
        let Some(bytes_per_s) = self.bytes_per_s else { return };
        let now = Instant::now();
        let passed = {
            let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
            let earliest = now.checked_sub(TICK).unwrap_or(now);
            *busy_until = earliest.max(*busy_until) + Duration::from_secs_f64(bytes as f64 / bytes_per_s);
            *busy_until
        };
        if passed > now + TICK {
            sleep_until(passed.into()).await;
        }
    }
}

impl Proxy {
    /// Passes connections on to a port of this machine.
    pub async fn to(upstream: u16) -> Result<Self> {
        Self::start(upstream, None).await
    }

    /// As [`to`](Self::to), with so many megabytes a second in each direction, over all connections.
    pub async fn slow(upstream: u16, megabytes_per_s: u32) -> Result<Self> {
        Self::start(upstream, Some(1e6 * f64::from(megabytes_per_s))).await
    }

    async fn start(upstream: u16, bytes_per_s: Option<f64>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream: AtomicU16::new(upstream),
            opened: AtomicU64::new(0),
            forgotten: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            lines: [Line::new(bytes_per_s), Line::new(bytes_per_s)],
        });
        let accepting = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let number = shared.opened.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(pass_on(client, number, shared.clone()));
                }
            }
        });
        Ok(Self { port, shared, accepting: accepting.abort_handle() })
    }

    /// The server's URL through the proxy.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// New connections go to another server; those that are open stay where they are.
    pub fn switch_to(&self, upstream: u16) {
        self.shared.upstream.store(upstream, Ordering::SeqCst);
    }

    /// Ends all connections that there are.
    pub fn cut(&self) {
        self.shared.cut.send_replace(self.shared.opened.load(Ordering::SeqCst));
    }

    /// Connections that there are lead nowhere from now on, and nobody is told, as when a firewall forgets them. New
    /// ones work.
    pub fn forget(&self) {
        self.shared.forgotten.send_replace(self.shared.opened.load(Ordering::SeqCst));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// One connection, until either side ends it or it is cut.
async fn pass_on(client: TcpStream, number: u64, shared: Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", shared.upstream.load(Ordering::SeqCst))).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut cut = shared.cut.subscribe();
    tokio::select! {
        done = copy(&mut from_client, &mut to_server, number, (&shared, &shared.lines[0])) => done,
        done = copy(&mut from_server, &mut to_client, number, (&shared, &shared.lines[1])) => done,
        _ = cut.wait_for(|&before| number < before) => Ok(()),
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    number: u64,
    (shared, line): (&Shared, &Line),
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if *shared.forgotten.borrow() > number {
            // Whatever is said now, even that it is over, arrives nowhere.
            std::future::pending::<()>().await;
        }
        if read == 0 {
            return Ok(());
        }
        line.pass(read).await;
        to.write_all(&buffer[..read]).await?;
    }
}
