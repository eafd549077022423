//! For local use: a key of our own, which nobody keeps, and tokens that end with it.

use super::tokens::{AUDIENCE, Claims, ISSUER};
use crate::{Result, identity::Role};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode, get_current_timestamp,
    jwk::{Jwk, JwkSet, ThumbprintHash},
};
use serde::Serialize;

/// How long a token is good, in seconds: a working day.
const LIFETIME: u64 = 12 * 60 * 60;

pub struct LocalKey {
    key: EncodingKey,
    public: Jwk,
}

#[derive(Serialize)]
struct Token {
    #[serde(flatten)]
    claims: Claims,
    iss: &'static str,
    aud: &'static str,
    exp: u64,
}

impl LocalKey {
    pub fn new() -> Result<Self> {
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())?;
        let key = EncodingKey::from_ec_der(pair.as_ref());
        let mut public = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
        public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256)?);
        Ok(Self { key, public })
    }

    /// What others need to check its tokens, as a key set.
    pub fn jwks(&self) -> Result<String> {
        Ok(serde_json::to_string(&JwkSet { keys: vec![self.public.clone()] })?)
    }

    pub fn token(&self, user: &str, role: Role) -> Result<String> {
        let claims = Claims { sub: user.into(), roles: vec![role.name().into()] };
        let token = Token { claims, iss: ISSUER, aud: AUDIENCE, exp: get_current_timestamp() + LIFETIME };
        let header = Header { kid: self.public.common.key_id.clone(), ..Header::new(Algorithm::ES256) };
        Ok(encode(&header, &token, &self.key)?)
    }

    /// Tokens to copy, and links that bring them along: what follows # stays in the browser.
    pub fn told(&self, url: &str) -> Result<String> {
        let (buyer, operator) = (self.token("1", Role::Buyer)?, self.token("operator", Role::Operator)?);
        Ok(format!(
            "Tokens for this shop, good for twelve hours or until it closes:\n\
             BUYER={buyer}\n\
             OPERATOR={operator}\n\
             In a browser, as buyer 1:     {url}/#token={buyer}\n\
             In a browser, as an operator: {url}/#token={operator}"
        ))
    }
}
