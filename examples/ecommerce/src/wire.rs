//! A wire between two services that can hold back answers, as networks do at bad moments.

use crate::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub struct Wire {
    pub url: String,
    held: watch::Sender<bool>,
}

impl Wire {
    /// A wire that leads to this service.
    pub async fn to(url: &str) -> Result<Self> {
        let service = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let wire = Self { url: format!("http://{}", listener.local_addr()?), held: watch::Sender::new(false) };
        let held = wire.held.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connect(client, service.clone(), held.clone()));
            }
        });
        Ok(wire)
    }

    /// Requests pass, answers do not.
    pub fn hold_answers(&self) {
        self.held.send_replace(true);
    }

    /// Everything passes.
    pub fn release(&self) {
        self.held.send_replace(false);
    }
}

async fn connect(client: TcpStream, service: String, mut held: watch::Receiver<bool>) -> Result<()> {
    let (mut requests, mut to_client) = client.into_split();
    let (mut answers, mut to_service) = TcpStream::connect(service).await?.into_split();
    let forth = async {
        copy(&mut requests, &mut to_service).await?;
        to_service.shutdown().await
    };
    let back = async {
        let mut answer = [0; 4096];
        loop {
            let length = answers.read(&mut answer).await?;
            if length == 0 || held.wait_for(|held| !held).await.is_err() {
                return to_client.shutdown().await;
            }
            to_client.write_all(&answer[..length]).await?;
        }
    };
    tokio::try_join!(forth, back)?;
    Ok(())
}
