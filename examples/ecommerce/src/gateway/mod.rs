//! The gateway: the one door of the shop. It knows who asks ([`tokens`]), what they may ask for ([`access`]) and how much of it ([`limits`]); what it lets through it hands to
//! the service that answers ([`proxy`]). What it refuses reaches no service.

mod access;
mod keys;
mod limits;
mod listen;
mod local;
mod page;
mod proxy;
mod tokens;

pub use local::LocalKey;
pub use proxy::Services;

use crate::{
    Result, books,
    problem::Problem,
    service::Door,
    telemetry::{self, Figures},
};
use access::Wanted;
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use limits::{Limiter, Limits};
use listen::Peer;
use proxy::Proxy;
use serde_json::{Value, json};
use std::sync::Arc;
use tokens::{Tokens, Trust};

/// The service's name.
pub const NAME: &str = "gateway";
/// Of its port.
pub const OFFSET: u16 = 0;

/// Whom it trusts, and how much it lets through.
#[derive(Debug, Clone, clap::Args)]
pub struct Rules {
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    limits: Limits,
}

impl Rules {
    /// For a shop: a key of its own, unless others are to be trusted.
    pub fn or_local_key(mut self) -> Result<(Self, Option<LocalKey>)> {
        let key = self.trust.is_local().then(LocalKey::new).transpose()?;
        if let Some(key) = &key {
            self.trust.jwks = Some(key.jwks()?);
        }
        Ok((self, key))
    }

    /// What a gateway is told that is a process of its own.
    pub fn arguments(&self) -> Vec<String> {
        self.trust.arguments().into_iter().chain(self.limits.arguments()).collect()
    }
}

struct Gateway {
    tokens: Tokens,
    limiter: Limiter,
    proxy: Proxy,
    limits: Limits,
    figures: Figures,
}

impl Gateway {
    /// To what the gateway answers itself.
    async fn admit_operator(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<(), Refusal> {
        let caller = self.tokens.caller(headers).await;
        self.limiter.admit(caller.as_ref().ok(), peer)?;
        access::only_operators(&caller?)
    }
}

pub async fn serve(door: Door, services: Services, rules: Rules) -> Result<()> {
    let url = door.url()?;
    let Rules { trust, limits } = rules;
    let tokens = Tokens::start(trust, &url).await?;
    let limiter = Limiter::start(&limits);
    let proxy = Proxy::new(services, limits.patience)?;
    let gateway = Arc::new(Gateway { tokens, limiter, proxy, limits, figures: Figures::of_service() });
    let router = telemetry::watched(router().with_state(gateway.clone()));
    if door.announced {
        println!("{url}");
    }
    listen::serve(door, router, &gateway.limits).await;
    Ok(())
}

/// The addresses are named for those who count and trace; what may be asked for there says [`access`].
fn router() -> Router<Arc<Gateway>> {
    let api = access::ADDRESSES.iter().fold(Router::new(), |api, address| api.route(address, any(pass)));
    page::routes()
        .merge(api.clone())
        .nest("/api/v1", api)
        .route("/.well-known/jwks.json", get(jwks))
        .route("/books", get(books))
        .route("/metrics", get(metrics))
        .route("/health/live", get(async || Json(json!({ "status": "up" }))))
        .route("/health/ready", get(ready))
        .method_not_allowed_fallback(pass)
        .fallback(pass)
}

/// All that happens to a request.
async fn pass(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Refusal> {
    let caller = gateway.tokens.caller(request.headers()).await;
    gateway.limiter.admit(caller.as_ref().ok(), request.extensions().get::<Peer>())?;
    let caller = caller?;
    let wanted = Wanted::of(request.method(), request.uri())?;
    wanted.granted_to(&caller)?;
    let (method, headers) = (request.method().clone(), request.headers().clone());
    let body = gateway.limits.read(request).await?;
    gateway.proxy.forward(&wanted, &caller, method, &headers, body).await
}

/// All books of the shop side by side, for operators.
async fn books(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Json<Value>, Refusal> {
    gateway.admit_operator(request.headers(), request.extensions().get()).await?;
    let lines = gateway.proxy.books().await?;
    Ok(Json(json!({ "balanced": books::balance(&lines), "lines": lines })))
}

/// How the gateway does, for Prometheus: it is an operator too, because whoever counts the requests of others learns of them.
async fn metrics(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Figures, Refusal> {
    gateway.admit_operator(request.headers(), request.extensions().get()).await?;
    Ok(gateway.figures.clone())
}

/// A gateway without keys would refuse everybody. A service that is away is no reason to send nobody: others are there.
async fn ready(State(gateway): State<Arc<Gateway>>) -> Result<Json<Value>, Problem> {
    match gateway.tokens.can_tell() {
        true => Ok(Json(json!({ "status": "up" }))),
        false => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "there are no keys yet to check tokens with")),
    }
}

/// The keys with which tokens for this shop are signed.
async fn jwks(State(gateway): State<Arc<Gateway>>) -> Response {
    ([(header::CONTENT_TYPE, "application/jwk-set+json")], gateway.tokens.jwks()).into_response()
}

/// A no, with what a client needs to do better.
#[derive(Debug)]
struct Refusal {
    problem: Problem,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, detail: &str) -> Self {
        Problem::new(status, detail).into()
    }

    fn with(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, header: None }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.problem.into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
