//! Listening, with clients that may be slow: the head of a request has to come in time, and who is refused before their request has come to its end hears why.

use super::limits::Limits;
use crate::service::{Door, GRACE};
use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::Service, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::json;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

/// Whom a connection is with.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// How long the rest of a request is read that was answered before its end. A connection that is closed over unread bytes takes the answer with it.
const LINGER: Duration = Duration::from_secs(2);
/// Serves until told to stop; requests under way have a little time to end.
pub async fn serve(door: Door, router: Router, limits: &Limits) {
    let Door { listener, stop: closing, .. } = door;
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = async {
            let place = free.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = closing.cancelled() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (router, closing, header_timeout) = (router.clone(), closing.clone(), limits.header_timeout);
                connections.spawn(async move {
                    connection(stream, Peer(peer), router, header_timeout, closing).await;
                    drop(place);
                });
            }
            Err(error) => {
                // For one, there are too many open files: it gets better when others end.
                debug!("no connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    // Streams of events have no end of their own.
    let _ = timeout(GRACE, connections.wait()).await;
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    header_timeout: Duration,
    closing: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        service.call(request.map(Body::new))
    });
    let mut served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = closing.cancelled() => {
            Pin::new(&mut served).graceful_shutdown();
            (&mut served).await
        }
    };
    let rest = served.into_parts();
    let mut stream = rest.io.into_inner();
    // Without a single byte it was only an idle connection.
    if ended.is_err_and(|error| error.is_timeout()) && !rest.read_buf.is_empty() {
        let _ = timeout(LINGER, stream.write_all(too_slow().as_bytes())).await;
    }
    let _ = stream.shutdown().await;
    let _ = timeout(LINGER, async { while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {} }).await;
}

/// The answer to a head that did not come in time: there is no request yet, so nobody else answers it.
fn too_slow() -> String {
    let problem =
        json!({ "title": "Request Timeout", "status": 408, "detail": "the head of the request did not come in time" })
            .to_string();
    format!(
        "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{problem}",
        problem.len()
    )
}
