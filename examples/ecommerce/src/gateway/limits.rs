//! How much of everything: nobody gets so much that nothing is left for others, and nobody is waited for forever.

use super::{Refusal, listen::Peer, tokens::Caller};
use crate::Result;
use axum::{
    RequestExt,
    body::{Bytes, HttpBody},
    extract::{DefaultBodyLimit, FromRequest, Request},
    http::{HeaderValue, StatusCode, header},
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::timeout;

#[derive(Debug, Clone, clap::Args)]
pub struct Limits {
    /// Bytes of a request's body.
    #[arg(long, env = "GATEWAY_BODY_LIMIT", default_value_t = 64 * 1024)]
    pub body_limit: usize,
    /// Seconds for a request's body to come.
    #[arg(long, env = "GATEWAY_BODY_TIMEOUT", default_value = "10", value_parser = seconds)]
    pub body_timeout: Duration,
    /// Seconds for a request's head to come; also how long a connection may be idle.
    #[arg(long, env = "GATEWAY_HEADER_TIMEOUT", default_value = "10", value_parser = seconds)]
    pub header_timeout: Duration,
    /// Seconds for a service to answer, and for the next part of its answer: longer than anybody may wait for an order.
    #[arg(long = "timeout", env = "GATEWAY_TIMEOUT", default_value = "35", value_parser = seconds)]
    pub patience: Duration,
    /// Requests a second for each user; without a token, for each address. 0 is for no limit.
    #[arg(long, env = "GATEWAY_RATE", default_value_t = 50)]
    pub rate: u32,
    /// Requests that a user may save up.
    #[arg(long, env = "GATEWAY_BURST", default_value = "100")]
    pub burst: NonZeroU32,
    /// Connections at once; more have to wait.
    #[arg(long, env = "GATEWAY_CONNECTIONS", default_value_t = 10_000)]
    pub connections: usize,
}

impl Limits {
    pub fn arguments(&self) -> Vec<String> {
        let Self { body_limit, body_timeout, header_timeout, patience, rate, burst, connections } = self;
        vec![
            format!("--body-limit={body_limit}"),
            format!("--body-timeout={}", body_timeout.as_secs_f64()),
            format!("--header-timeout={}", header_timeout.as_secs_f64()),
            format!("--timeout={}", patience.as_secs_f64()),
            format!("--rate={rate}"),
            format!("--burst={burst}"),
            format!("--connections={connections}"),
        ]
    }

    /// The whole body, before any service hears of the request: what is too long or too slow costs nobody else anything.
    pub async fn read(&self, mut request: Request) -> Result<Bytes, Refusal> {
        let too_large = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, &format!("at most {} bytes", self.body_limit));
        if request.body().size_hint().lower() > self.body_limit as u64 {
            return Err(too_large());
        }
        DefaultBodyLimit::max(self.body_limit).apply(&mut request);
        match timeout(self.body_timeout, Bytes::from_request(request.with_limited_body(), &())).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
            Ok(Err(rejection)) => Err(Refusal::new(rejection.status(), &rejection.body_text())),
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time")),
        }
    }
}

/// For flags.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Who is counted.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Who {
    User(String),
    Address(Option<IpAddr>),
}

/// How often somebody may ask. None without a limit.
pub struct Limiter(Option<Arc<RateLimiter<Who, governor::state::keyed::DefaultKeyedStateStore<Who>, DefaultClock>>>);

impl Limiter {
    pub fn start(limits: &Limits) -> Self {
        let Some(rate) = NonZeroU32::new(limits.rate) else { return Self(None) };
        let limiter = Arc::new(RateLimiter::keyed(Quota::per_second(rate).allow_burst(limits.burst)));
        let counted = Arc::downgrade(&limiter);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(60)).await;
                let Some(counted) = counted.upgrade() else { return };
                // Who may ask as much as ever need not be remembered.
                counted.retain_recent();
            }
        });
        Self(Some(limiter))
    }

    /// A caller whose token is not good is only an address.
    pub fn admit(&self, caller: Option<&Caller>, peer: Option<&Peer>) -> Result<(), Refusal> {
        let Some(limiter) = &self.0 else { return Ok(()) };
        let who = match caller {
            Some(Caller::Known(identity)) => Who::User(identity.user().into()),
            _ => Who::Address(peer.map(|Peer(address)| address.ip())),
        };
        limiter.check_key(&who).map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now()).as_secs() + 1;
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too many requests")
                .with(header::RETRY_AFTER, HeaderValue::from(wait))
        })
    }
}
