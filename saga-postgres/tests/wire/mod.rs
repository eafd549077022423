//! A wire between a client and Postgres that can be cut, and that can fall silent without anybody being told: as a load
//! balancer does that forgets its connections.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::AbortHandle,
};

pub(crate) struct Wire {
    pub(crate) port: u16,
    state: Arc<State>,
    accepting: AbortHandle,
}

struct State {
    server: AtomicU16,
    /// How many connections there may be at a time; others wait before they are answered.
    places: Arc<Semaphore>,
    next: AtomicU64,
    listeners: Mutex<Vec<u64>>,
    mode: watch::Sender<Mode>,
}

#[derive(Clone, Default)]
struct Mode {
    down: bool,
    cuts: u64,
    /// Connections before this one are silent.
    silent_before: u64,
    silent: HashSet<u64>,
}

impl Mode {
    fn is_silent(&self, connection: u64) -> bool {
        connection < self.silent_before || self.silent.contains(&connection)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Wire {
    pub(crate) async fn to(server: u16) -> Self {
        Self::with_places(server, Semaphore::MAX_PERMITS).await
    }

    pub(crate) async fn with_places(server: u16, places: usize) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            server: server.into(),
            places: Arc::new(Semaphore::new(places)),
            next: AtomicU64::new(0),
            listeners: Mutex::default(),
            mode: watch::Sender::default(),
        });
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.mode.borrow().down {
                    continue;
                }
                let (id, cuts) = (shared.next.fetch_add(1, Ordering::SeqCst), shared.mode.borrow().cuts);
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _place = shared.places.clone().acquire_owned().await;
                    let server = ("127.0.0.1", shared.server.load(Ordering::SeqCst));
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let (asks, answers) = (client.into_split(), server.into_split());
                    let there = pass_on(shared.clone(), id, cuts, asks.0, answers.1, true);
                    let back = pass_on(shared.clone(), id, cuts, answers.0, asks.1, false);
                    tokio::select! {
                        () = there => {}
                        () = back => {}
                    }
                });
            }
        });
        Self { port, state, accepting: accepting.abort_handle() }
    }

    /// The same way as `url`, over this wire.
    pub(crate) fn url(&self, url: &str, port: u16) -> String {
        url.replace(&format!(":{port}/"), &format!(":{}/", self.port))
    }

    /// New connections lead to another server. Those that there are stay where they are.
    pub(crate) fn lead_to(&self, server: u16) {
        self.state.server.store(server, Ordering::SeqCst);
    }

    /// How many connections there were.
    pub(crate) fn made(&self) -> u64 {
        self.state.next.load(Ordering::SeqCst)
    }

    /// Those that there are lead nowhere from now on. New ones work.
    pub(crate) fn silence_existing(&self) {
        let next = self.made();
        self.state.mode.send_modify(|mode| mode.silent_before = next);
    }

    /// Also those to come.
    pub(crate) fn silence(&self) {
        self.state.mode.send_modify(|mode| mode.silent_before = u64::MAX);
    }

    /// Those that have said LISTEN so far.
    pub(crate) fn silence_listeners(&self) -> usize {
        let listeners = self.state.listeners.lock().unwrap().clone();
        self.state.mode.send_modify(|mode| mode.silent.extend(&listeners));
        listeners.len()
    }

    pub(crate) fn listeners(&self) -> usize {
        self.state.listeners.lock().unwrap().len()
    }

    /// What was held back arrives.
    pub(crate) fn restore(&self) {
        self.state.mode.send_modify(|mode| {
            (mode.silent_before, mode.down) = (0, false);
            mode.silent.clear();
        });
    }

    /// All end at once. New ones work.
    pub(crate) fn cut(&self) {
        self.state.mode.send_modify(|mode| mode.cuts += 1);
    }

    /// All end at once, and new ones are refused.
    pub(crate) fn down(&self) {
        self.state.mode.send_modify(|mode| {
            mode.cuts += 1;
            mode.down = true;
        });
    }
}

async fn pass_on(
    state: Arc<State>,
    id: u64,
    cuts: u64,
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    asks: bool,
) {
    let (mut cut, mut mode) = (state.mode.subscribe(), state.mode.subscribe());
    let passing = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let said = &buffer[..read];
            if asks && said.windows(7).any(|word| word == b"LISTEN ") {
                state.listeners.lock().unwrap().push(id);
            }
            if mode.wait_for(|mode| !mode.is_silent(id)).await.is_err() || to.write_all(said).await.is_err() {
                return;
            }
        }
        // A silent connection does not tell of its end either.
        let _ = mode.wait_for(|mode| !mode.is_silent(id)).await;
    };
    tokio::select! {
        () = passing => {}
        _ = cut.wait_for(|mode| mode.cuts != cuts) => {}
    }
}
