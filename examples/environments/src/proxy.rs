//! A TCP proxy before the server: it can send new connections somewhere else, cut those that there are, or forget them
//! without telling anybody.

use crate::Result;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

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
}

impl Proxy {
    /// Passes connections on to a port of this machine.
    pub async fn to(upstream: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream: AtomicU16::new(upstream),
            opened: AtomicU64::new(0),
            forgotten: watch::Sender::new(0),
            cut: watch::Sender::new(0),
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
        done = copy(&mut from_client, &mut to_server, number, &shared) => done,
        done = copy(&mut from_server, &mut to_client, number, &shared) => done,
        _ = cut.wait_for(|&before| number < before) => Ok(()),
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    number: u64,
    shared: &Shared,
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
        to.write_all(&buffer[..read]).await?;
    }
}
