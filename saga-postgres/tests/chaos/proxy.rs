//! Between the engine and Postgres: a TCP proxy that understands as much of the protocol as it takes to know when a
//! transaction is about to commit, and cuts the connection then.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};

/// What a transaction writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum What {
    Append,
    Start,
    Claim,
    /// Mail, heartbeats, sweeps, ..
    Other,
    /// Several statements of a user.
    Transaction,
}

/// When a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum When {
    /// Postgres has committed and said so; nobody hears it.
    Answered,
    /// The commit was sent, and whether Postgres gets to see it is open.
    Sent,
    /// The statement was sent, its commit was not: it is rolled back.
    Uncommitted,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    cuts: Arc<Cuts>,
    accepting: AbortHandle,
}

#[derive(Debug, Default)]
struct Cuts {
    wanted: Mutex<Option<(What, When)>>,
    made: Mutex<Vec<(What, When)>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let cuts = Arc::new(Cuts::default());
        let own_port = listener.local_addr().unwrap().port();
        let shared = cuts.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, port, shared.clone()));
            }
        });
        Self { port: own_port, cuts, accepting: accepting.abort_handle() }
    }

    /// The next such commit is cut, on whatever connection it comes.
    pub(crate) fn cut_next(&self, what: What, when: When) {
        self.cuts.wanted.lock().unwrap().get_or_insert((what, when));
    }

    pub(crate) fn made(&self) -> Vec<(What, When)> {
        self.cuts.made.lock().unwrap().clone()
    }
}

impl Cuts {
    fn take(&self, what: What) -> Option<When> {
        self.wanted.lock().unwrap().take_if(|(wanted, _)| *wanted == what).map(|(_, when)| when)
    }
}

/// One connection, until either side ends it or it is cut.
async fn pass_on(mut client: TcpStream, port: u16, cuts: Arc<Cuts>) -> io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut asked, mut answered) = (vec![], vec![]);
    let mut talk = Talk::default();
    loop {
        tokio::select! {
            read = client.read_buf(&mut asked) => {
                if read? == 0 {
                    return Ok(());
                }
                let mut heard = 0;
                while let Some(message) = talk.message(&asked[heard..]) {
                    let commits = talk.hear(message);
                    let after = heard + message.len();
                    if let Some(what) = commits && let Some(when) = cuts.take(what) {
                        let sent = if when == When::Uncommitted { heard } else { after };
                        server.write_all(&asked[..sent]).await?;
                        let when = match when {
                            When::Answered if !committed(&mut server).await => When::Sent,
                            when => when,
                        };
                        cuts.made.lock().unwrap().push((what, when));
                        return Ok(());
                    }
                    heard = after;
                }
                server.write_all(&asked[..heard]).await?;
                asked.drain(..heard);
            }
            read = server.read_buf(&mut answered) => {
                if read? == 0 {
                    return Ok(());
                }
                client.write_all(&answered).await?;
                answered.clear();
            }
        }
    }
}

/// Reads the answer to the last message: whether something was done, and without an error.
async fn committed(server: &mut TcpStream) -> bool {
    let answer = async {
        let (mut done, mut failed) = (false, false);
        loop {
            let kind = server.read_u8().await?;
            let length = server.read_u32().await?;
            let mut body = vec![0; length as usize - 4];
            server.read_exact(&mut body).await?;
            match kind {
                b'C' => done = true,
                b'E' => failed = true,
                b'Z' => return Ok::<_, io::Error>(done && !failed),
                _ => {}
            }
        }
    };
    matches!(timeout(Duration::from_secs(2), answer).await, Ok(Ok(true)))
}

/// What a client says to Postgres: <https://www.postgresql.org/docs/15/protocol-message-formats.html>.
#[derive(Default)]
struct Talk {
    introduced: bool,
    statements: HashMap<Vec<u8>, Option<What>>,
    bound: Option<What>,
    /// What the open transaction has written.
    written: Option<What>,
    in_transaction: bool,
}

impl Talk {
    /// The next whole message. Only the first one has no letter before its length.
    fn message<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let letter = usize::from(self.introduced);
        let length = bytes.get(letter..letter + 4)?;
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        bytes.get(..letter + length)
    }

    /// What is committed by this message, if it is one that commits something.
    fn hear(&mut self, message: &[u8]) -> Option<What> {
        if !self.introduced {
            const PROTOCOL_3_0: [u8; 4] = [0, 3, 0, 0];
            self.introduced = message[4..].starts_with(&PROTOCOL_3_0);
            return None;
        }
        let mut texts = message[5..].split(|byte| *byte == 0);
        let mut text = || texts.next().unwrap_or_default();
        match message[0] {
            b'P' => {
                let (name, sql) = (text().to_vec(), String::from_utf8_lossy(text()));
                self.statements.insert(name, written_by(&sql));
                None
            }
            b'B' => {
                let (_portal, statement) = (text(), text());
                self.bound = self.statements.get(statement).copied().flatten();
                None
            }
            b'E' => {
                self.written = self.bound.take().or(self.written);
                None
            }
            b'S' if !self.in_transaction => self.written.take(),
            b'Q' => match text() {
                begin if begin.starts_with(b"BEGIN") => {
                    self.in_transaction = true;
                    None
                }
                end if end.starts_with(b"COMMIT") || end.starts_with(b"ROLLBACK") => {
                    self.in_transaction = false;
                    self.written.take().filter(|_| end.starts_with(b"COMMIT")).map(|_| What::Transaction)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// Nothing that is only read is worth a cut, and a hint is worth nothing.
fn written_by(sql: &str) -> Option<What> {
    match () {
        () if sql.contains(".saga_journal (") => Some(What::Append),
        () if sql.contains(".saga (") => Some(What::Start),
        () if sql.contains("SET owner = $1") => Some(What::Claim),
        () if ["INSERT", "UPDATE", "DELETE", ".saga_inbox_"].iter().any(|verb| sql.contains(verb)) => Some(What::Other),
        () => None,
    }
}
