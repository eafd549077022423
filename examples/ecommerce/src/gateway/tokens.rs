//! Who asks, by their token: a JWT, signed with a key that we trust, by our issuer, for us, and not expired.

use super::{
    Refusal,
    keys::{Keys, Known},
    limits::seconds,
    local::LocalKey,
};
use crate::{
    Result,
    identity::{Identity, Role},
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use jsonwebtoken::{Validation, decode, decode_header, errors::ErrorKind};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Which tokens are good. Without `--jwks` and `--jwks-url` it is a key that is made at the start; tokens for it are printed.
#[derive(Debug, Clone, clap::Args)]
pub struct Trust {
    /// For exploring: no tokens, everybody may do everything.
    #[arg(long, env = "NO_AUTH")]
    pub no_auth: bool,
    /// The keys that sign tokens, as JSON (RFC 7517).
    #[arg(long, env = "JWKS", conflicts_with = "jwks_url")]
    pub jwks: Option<String>,
    /// Where these keys are. They are fetched at the start, for tokens with a new key, and every five minutes.
    #[arg(long, env = "JWKS_URL")]
    pub jwks_url: Option<String>,
    /// Seconds after which a token with a new key may cause another look at the keys.
    #[arg(long, env = "JWKS_PAUSE", default_value = "10", value_parser = seconds)]
    pub jwks_pause: Duration,
    /// Who makes tokens: their `iss`.
    #[arg(long, env = "TOKEN_ISSUER", default_value = ISSUER)]
    pub issuer: String,
    /// Whom they are for: their `aud`.
    #[arg(long, env = "TOKEN_AUDIENCE", default_value = AUDIENCE)]
    pub audience: String,
    /// Seconds by which clocks may differ.
    #[arg(long, env = "TOKEN_LEEWAY", default_value = "30", value_parser = seconds)]
    pub leeway: Duration,
}

impl Trust {
    /// Whether it is left to the shop.
    pub const fn is_local(&self) -> bool {
        !self.no_auth && self.jwks.is_none() && self.jwks_url.is_none()
    }

    pub fn arguments(&self) -> Vec<String> {
        let Self { no_auth, jwks, jwks_url, jwks_pause, issuer, audience, leeway } = self;
        let given = [
            no_auth.then(|| "--no-auth".into()),
            jwks.as_ref().map(|it| format!("--jwks={it}")),
            jwks_url.as_ref().map(|it| format!("--jwks-url={it}")),
        ];
        let others = [
            format!("--jwks-pause={}", jwks_pause.as_secs_f64()),
            format!("--issuer={issuer}"),
            format!("--audience={audience}"),
            format!("--leeway={}", leeway.as_secs_f64()),
        ];
        given.into_iter().flatten().chain(others).collect()
    }
}

pub const ISSUER: &str = "ecommerce";
pub const AUDIENCE: &str = "ecommerce";

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Claims {
    /// The user's id.
    pub sub: String,
    /// Names of roles; others than ours mean nothing here.
    #[serde(default)]
    pub roles: Vec<String>,
}

/// Who asks.
#[derive(Debug)]
pub enum Caller {
    /// It does not matter: `--no-auth`.
    Anybody,
    /// There is no token.
    Unknown,
    Known(Identity),
}

/// None with `--no-auth`.
pub struct Tokens(Option<Checks>);

struct Checks {
    keys: Keys,
    issuer: String,
    audience: String,
    leeway: Duration,
}

impl Tokens {
    /// Says loudly if there is nothing to check, and hands out tokens if it had to make a key.
    pub async fn start(trust: Trust, url: &str) -> Result<Self> {
        if trust.no_auth {
            eprintln!(
                "\n  !!  --no-auth: everybody who reaches {url} may order for everybody and see everything.  !!\n"
            );
            return Ok(Self(None));
        }
        let keys = match (trust.jwks_url, trust.jwks) {
            (Some(url), _) => Keys::at(url, trust.jwks_pause).await?,
            (None, Some(jwks)) => Keys::fixed(&jwks)?,
            (None, None) => {
                let key = LocalKey::new()?;
                eprintln!("{}", key.told(url)?);
                Keys::fixed(&key.jwks()?)?
            }
        };
        Ok(Self(Some(Checks { keys, issuer: trust.issuer, audience: trust.audience, leeway: trust.leeway })))
    }

    pub async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let Some(checks) = &self.0 else { return Ok(Caller::Anybody) };
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        match (given.next(), given.next()) {
            (None, _) => Ok(Caller::Unknown),
            (Some(_), Some(_)) => Err(unauthorized("one Authorization header, please")),
            (Some(one), None) => checks.identity(bearer(one)?).await.map(Caller::Known),
        }
    }

    /// Whether there is a token that it would take.
    pub fn can_tell(&self) -> bool {
        self.0.as_ref().is_none_or(|checks| checks.keys.any())
    }

    /// What is known of the keys, in public.
    pub fn jwks(&self) -> String {
        self.0.as_ref().map_or_else(|| r#"{"keys":[]}"#.into(), |checks| checks.keys.jwks())
    }
}

impl Checks {
    async fn identity(&self, token: &str) -> Result<Identity, Refusal> {
        // An `alg` that is none, or that nobody knows, ends here. One that is not the key's ends below, so a public key is never taken for a secret.
        let header = decode_header(token).map_err(|_| unauthorized("this is no token that we know to read"))?;
        if header.crit.is_some() {
            return Err(unauthorized("the token demands what we do not understand (crit)"));
        }
        let id = header.kid.ok_or_else(|| unauthorized("the token does not say which key signed it (kid)"))?;
        let key = match self.keys.get(&id).await {
            Known::Yes(key) => key,
            Known::No => return Err(unauthorized("the token is signed with a key that we do not know")),
            Known::CannotTell => {
                return Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the key of this token cannot be looked up now",
                )
                .with(header::RETRY_AFTER, HeaderValue::from_static("10")));
            }
        };
        let mut validation = Validation::new(key.algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.validate_nbf = true;
        validation.leeway = self.leeway.as_secs();
        let claims = decode::<Claims>(token, &key.decoding, &validation)
            .map_err(|error| unauthorized(why(error.kind())))?
            .claims;
        let named = |role: &&Role| claims.roles.iter().any(|name| name == role.name());
        let roles = [Role::Buyer, Role::Operator].iter().filter(named).copied().collect();
        Identity::new(&claims.sub, roles).ok_or_else(|| unauthorized("the token's user has an impossible name (sub)"))
    }
}

fn bearer(header: &HeaderValue) -> Result<&str, Refusal> {
    let (scheme, token) = header.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    match scheme.eq_ignore_ascii_case("bearer") {
        true => Ok(token.trim()),
        false => Err(unauthorized("Authorization: Bearer <token>, please")),
    }
}

const fn why(error: &ErrorKind) -> &'static str {
    match error {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is not from our issuer",
        ErrorKind::InvalidAudience => "the token is for somebody else (aud)",
        ErrorKind::InvalidSignature => "the token's signature is wrong",
        ErrorKind::InvalidAlgorithm => "the token's algorithm is not that of its key",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks one of exp, iss, aud and sub",
        _ => "this is no token that we know to read",
    }
}

pub fn unauthorized(detail: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, detail)
        .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ecommerce\""))
}
