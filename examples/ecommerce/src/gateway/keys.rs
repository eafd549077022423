//! The keys that sign tokens: a fixed set, or one at an address, where keys come and go.
//!
//! A token with a new key causes a fetch, so nobody has to restart anything when keys change; but not more often than once in a pause, so nobody can make us
//! fetch by inventing keys. Every five minutes it is fetched anyway, so that a key that was withdrawn ends. While the address does not answer, the keys of before are good.

use crate::Result;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};
use tracing::warn;

/// After which the keys are fetched even if nobody misses one.
const REFRESH: Duration = Duration::from_secs(300);
/// For one fetch.
const PATIENCE: Duration = Duration::from_secs(5);

/// A key is for one algorithm, whatever a token says.
pub struct Key {
    pub decoding: DecodingKey,
    pub algorithm: Algorithm,
    public: Jwk,
}

/// Whether there is such a key.
pub enum Known {
    Yes(Arc<Key>),
    No,
    /// It is a new one, and the address did not answer.
    CannotTell,
}

#[derive(Clone)]
pub struct Keys {
    known: Arc<RwLock<HashMap<String, Arc<Key>>>>,
    origin: Option<Arc<Origin>>,
}

struct Origin {
    http: Client,
    url: String,
    pause: Duration,
    /// When it was fetched last, and whether it worked. Held during a fetch: who comes meanwhile waits for it, and makes none.
    last: Mutex<(Instant, bool)>,
}

impl Keys {
    pub fn fixed(jwks: &str) -> Result<Self> {
        let set: AnySet =
            serde_json::from_str(jwks).map_err(|error| format!("--jwks is no key set (RFC 7517): {error}"))?;
        match usable(set) {
            known if known.is_empty() => {
                Err("--jwks has no public key with a name (kid) that is for signatures".into())
            }
            known => Ok(Self { known: Arc::new(RwLock::new(known)), origin: None }),
        }
    }

    /// Starts also if nobody answers there yet.
    pub async fn at(url: String, pause: Duration) -> Result<Self> {
        if url.starts_with("https:") {
            return Err(
                "--jwks-url begins with https: add the feature rustls to reqwest in Cargo.toml, and take out this line"
                    .into(),
            );
        }
        let http = Client::builder().timeout(PATIENCE).build()?;
        let last = Mutex::new((Instant::now(), false));
        let keys = Self { known: Arc::default(), origin: Some(Arc::new(Origin { http, url, pause, last })) };
        keys.fetch().await;
        tokio::spawn({
            let keys = keys.clone();
            async move {
                loop {
                    tokio::time::sleep(REFRESH).await;
                    keys.fetch().await;
                }
            }
        });
        Ok(keys)
    }

    pub async fn get(&self, id: &str) -> Known {
        if let Some(key) = self.find(id) {
            return Known::Yes(key);
        }
        let Some(origin) = &self.origin else { return Known::No };
        let mut last = origin.last.lock().await;
        if last.0.elapsed() >= origin.pause {
            *last = self.replace(origin).await;
        }
        let answered = last.1;
        drop(last);
        match self.find(id) {
            Some(key) => Known::Yes(key),
            None if answered => Known::No,
            None => Known::CannotTell,
        }
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.known().is_empty()
    }

    /// All of them, for everybody.
    pub fn jwks(&self) -> String {
        json!({ "keys": self.known().values().map(|key| &key.public).collect::<Vec<_>>() }).to_string()
    }

    fn find(&self, id: &str) -> Option<Arc<Key>> {
        self.known().get(id).cloned()
    }

    fn known(&self) -> RwLockReadGuard<'_, HashMap<String, Arc<Key>>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self) {
        if let Some(origin) = &self.origin {
            let mut last = origin.last.lock().await;
            *last = self.replace(origin).await;
        }
    }

    async fn replace(&self, origin: &Origin) -> (Instant, bool) {
        let answer = origin.set().await;
        let now = Instant::now();
        match answer {
            Ok(set) => {
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = usable(set);
                (now, true)
            }
            Err(error) => {
                warn!("the keys of tokens stay as they are: {} does not answer: {error}", origin.url);
                (now, false)
            }
        }
    }
}

impl Origin {
    async fn set(&self) -> Result<AnySet> {
        Ok(self.http.get(&self.url).send().await?.error_for_status()?.json().await?)
    }
}

#[derive(Deserialize)]
struct AnySet {
    keys: Vec<Value>,
}

/// By their names. One that we cannot read is no reason to do without the others.
fn usable(set: AnySet) -> HashMap<String, Arc<Key>> {
    let keys = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    keys.filter_map(|jwk| Some((jwk.common.key_id.clone()?, Arc::new(key(jwk)?)))).collect()
}

/// Only public keys for signatures. A shared secret is none, wherever it comes from.
fn key(jwk: Jwk) -> Option<Key> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => Algorithm::ES384,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::RSA(_) => match jwk.common.key_algorithm {
            None | Some(KeyAlgorithm::RS256) => Algorithm::RS256,
            Some(KeyAlgorithm::RS384) => Algorithm::RS384,
            Some(KeyAlgorithm::RS512) => Algorithm::RS512,
            Some(KeyAlgorithm::PS256) => Algorithm::PS256,
            Some(KeyAlgorithm::PS384) => Algorithm::PS384,
            Some(KeyAlgorithm::PS512) => Algorithm::PS512,
            Some(_) => return None,
        },
        _ => return None,
    };
    Some(Key { decoding: DecodingKey::from_jwk(&jwk).ok()?, algorithm, public: jwk })
}
