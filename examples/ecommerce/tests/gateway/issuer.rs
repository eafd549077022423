//! Who makes tokens, and where their keys are to be had.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp, jwk::Jwk};
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{net::TcpListener, task::JoinHandle};

pub struct Key {
    pub id: &'static str,
    pub algorithm: Algorithm,
    pub signing: EncodingKey,
}

impl Key {
    pub fn new(id: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        Self { id, algorithm: Algorithm::ES256, signing: EncodingKey::from_ec_der(pair.as_ref()) }
    }

    pub fn edwards(id: &'static str) -> Self {
        let pair = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
        Self { id, algorithm: Algorithm::EdDSA, signing: EncodingKey::from_ed_der(pair.as_ref()) }
    }

    pub fn public(&self) -> Value {
        let mut public = serde_json::to_value(Jwk::from_encoding_key(&self.signing, self.algorithm).unwrap()).unwrap();
        public["kid"] = self.id.into();
        public["use"] = "sig".into();
        public
    }

    pub fn header(&self) -> Header {
        Header { kid: Some(self.id.into()), ..Header::new(self.algorithm) }
    }

    pub fn sign(&self, claims: &Value) -> String {
        encode(&self.header(), claims, &self.signing).unwrap()
    }

    pub fn token(&self, user: &str, role: &str) -> String {
        self.sign(&claims(user, role))
    }
}

/// Those of a good token.
pub fn claims(user: &str, role: &str) -> Value {
    json!({ "sub": user, "roles": [role], "iss": "ecommerce", "aud": "ecommerce", "exp": get_current_timestamp() + 300 })
}

/// A server with keys, which come and go.
pub struct Issuer {
    pub url: String,
    known: Known,
    task: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Known {
    /// None, and it does not work.
    keys: Arc<Mutex<Option<Vec<Value>>>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    pub async fn with(keys: &[&Key]) -> Self {
        let known = Known::default();
        let router = Router::new().route("/jwks.json", get(serve)).with_state(known.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let issuer = Self { url, known, task };
        issuer.has(keys);
        issuer
    }

    pub fn has(&self, keys: &[&Key]) {
        *self.known.keys.lock().unwrap() = Some(keys.iter().map(|key| key.public()).collect());
    }

    pub fn fails(&self) {
        *self.known.keys.lock().unwrap() = None;
    }

    /// How often its keys were fetched.
    pub fn asked(&self) -> usize {
        self.known.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(State(known): State<Known>) -> Result<String, StatusCode> {
    known.asked.fetch_add(1, Ordering::SeqCst);
    match &*known.keys.lock().unwrap() {
        Some(keys) => Ok(json!({ "keys": keys }).to_string()),
        None => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}
