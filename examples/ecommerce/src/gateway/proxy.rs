//! Handing a request to the service that answers it, and the answer back, as it comes.

use super::{Refusal, access::Wanted, tokens::Caller};
use crate::{
    Result,
    books::{self, Line},
    order::Others,
    telemetry::Client,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::Response,
};
use reqwest::{Error, redirect::Policy};
use std::time::Duration;
use tokio::time::timeout;

/// Where the services are.
#[derive(Debug, Clone, clap::Args)]
pub struct Services {
    #[arg(long, env = "USER_URL", default_value = "http://127.0.0.1:8081")]
    pub user: String,
    #[arg(long, env = "ORDER_URL", default_value = "http://127.0.0.1:8082")]
    pub order: String,
    #[arg(long, env = "INVENTORY_URL", default_value = "http://127.0.0.1:8084")]
    pub inventory: String,
    #[arg(long, env = "PAYMENT_URL", default_value = "http://127.0.0.1:8085")]
    pub payment: String,
    #[arg(long, env = "DELIVERY_URL", default_value = "http://127.0.0.1:8086")]
    pub delivery: String,
    #[arg(long, env = "PRODUCT_URL", default_value = "http://127.0.0.1:8087")]
    pub product: String,
    #[arg(long, env = "NOTIFICATION_URL", default_value = "http://127.0.0.1:8088")]
    pub notification: String,
}

impl Services {
    fn at(&self, service: &str) -> &str {
        let url = match service {
            "user" => &self.user,
            "order" => &self.order,
            "inventory" => &self.inventory,
            "payment" => &self.payment,
            "delivery" => &self.delivery,
            "product" => &self.product,
            _ => &self.notification,
        };
        url.trim_end_matches('/')
    }
}

/// What a service gets to see of a request's headers. The token is not among it, and nobody can say by a header who they are. Which trace it is a part of says the [`Client`].
const PASSED_ON: [&str; 7] =
    ["accept", "accept-language", "content-type", "idempotency-key", "if-none-match", "last-event-id", "user-agent"];

/// What belongs to a connection, and not to an answer.
const OF_THE_CONNECTION: [HeaderName; 6] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub struct Proxy {
    services: Services,
    http: Client,
    /// For answers in which nothing may happen for a long time.
    endless: Client,
    patience: Duration,
}

impl Proxy {
    pub fn new(services: Services, patience: Duration) -> Result<Self> {
        let client = || reqwest::Client::builder().no_proxy().redirect(Policy::none()).connect_timeout(patience);
        let http = Client::new(client().read_timeout(patience).build()?);
        let endless = Client::new(client().build()?);
        Ok(Self { services, http, endless, patience })
    }

    pub async fn forward(
        &self,
        wanted: &Wanted,
        caller: &Caller,
        method: Method,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response, Refusal> {
        let url = format!("{}{}", self.services.at(wanted.service), wanted.path);
        let mut passed_on = passed_on(headers);
        if let Caller::Known(identity) = caller {
            identity.write_to(&mut passed_on);
        }
        let http = if wanted.endless { &self.endless } else { &self.http };
        let request = http.request(method, &url).headers(passed_on).body(body);
        let answer = match timeout(self.patience, http.send(request)).await {
            Ok(answer) => answer.map_err(|error| failed(wanted.service, &error))?,
            Err(_) => return Err(too_late(wanted.service)),
        };
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        strip(&mut headers);
        let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

impl Proxy {
    /// What each service says of its books, compared.
    pub async fn books(&self) -> Result<Vec<Line>, Refusal> {
        let Services { user, order, inventory, payment, delivery, product, notification } = self.services.clone();
        let others = Others { user, inventory, payment, delivery, product };
        match timeout(self.patience, books::now(&order, &others, &notification)).await {
            Ok(lines) => {
                lines.map_err(|error| Refusal::new(StatusCode::BAD_GATEWAY, &format!("a book cannot be read: {error}")))
            }
            Err(_) => Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "a book cannot be read in time")),
        }
    }
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let known = headers.iter().filter(|(name, _)| PASSED_ON.contains(&name.as_str()));
    known.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&OF_THE_CONNECTION) {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

fn failed(service: &str, error: &Error) -> Refusal {
    match error {
        error if error.is_timeout() => too_late(service),
        error if error.is_connect() => Refusal::new(
            StatusCode::BAD_GATEWAY,
            &format!("the {service} service cannot be reached; nothing has happened"),
        ),
        _ => Refusal::new(
            StatusCode::BAD_GATEWAY,
            &format!(
                "the {service} service ended in the middle; it may have happened, so ask again with the same Idempotency-Key"
            ),
        ),
    }
}

fn too_late(service: &str) -> Refusal {
    let detail = format!(
        "the {service} service did not answer in time; it may have happened, so ask again with the same Idempotency-Key"
    );
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, &detail)
}
