//! A broker in one process and relays in others: a call is a line of JSON, and so is its answer.
//!
//! What arrived whole is published, a part at a time, whether or not whoever sent it is still alive.

use crate::drill::Tally;
use async_trait::async_trait;
use saga_core::transport::{Consumer, Outgoing, PublishError, Receiver, Subscription, Transport, TransportError};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::sleep,
};

/// So much of a call is published at a time.
const PART: usize = 100;

/// Listens, for as long as this process lives. `pause` is how long a part takes, and the answer.
pub(crate) async fn listen(tally: Arc<Tally>, pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            tokio::spawn(hear(caller, tally.clone(), pause));
        }
    });
    address
}

async fn hear(caller: TcpStream, tally: Arc<Tally>, pause: Duration) -> io::Result<()> {
    let mut caller = BufReader::new(caller);
    let mut line = String::new();
    caller.read_line(&mut line).await?;
    // A caller that was killed may have sent a part of it.
    let messages: Vec<(String, String)> = serde_json::from_str(&line)?;
    for part in messages.chunks(PART) {
        sleep(pause).await;
        part.iter().for_each(|(key, data)| tally.heard(key, data.as_bytes()));
    }
    sleep(pause).await;
    caller.write_all(b"true\n").await
}

/// The relay's end.
pub(crate) struct Wire {
    pub(crate) broker: SocketAddr,
}

impl Wire {
    async fn call(&self, batch: &[Outgoing]) -> io::Result<()> {
        let text = |outgoing: &Outgoing| String::from_utf8_lossy(&outgoing.message.data).into_owned();
        let messages: Vec<(&str, String)> =
            batch.iter().map(|outgoing| (outgoing.message.key.as_str(), text(outgoing))).collect();
        let mut broker = BufReader::new(TcpStream::connect(self.broker).await?);
        broker.write_all(serde_json::to_string(&messages)?.as_bytes()).await?;
        broker.write_all(b"\n").await?;
        let mut answer = String::new();
        broker.read_line(&mut answer).await?;
        if answer == "true\n" { Ok(()) } else { Err(io::Error::other("it did not answer")) }
    }
}

#[async_trait]
impl Transport for Wire {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let answer = self.call(batch).await.map_err(|error| PublishError::Unavailable(error.to_string()));
        vec![answer; batch.len()]
    }

    async fn subscribe(&self, _: Subscription, _: Arc<dyn Receiver>) -> Result<Box<dyn Consumer>, TransportError> {
        Err(TransportError("the tally hears everything without".into()))
    }

    fn system(&self) -> &'static str {
        "local"
    }

    fn max_message_bytes(&self) -> usize {
        1_000_000
    }
}
