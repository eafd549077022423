//! Who asks. The gateway finds it out, and tells the services in two headers that nobody else can send through it.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, request::Parts},
};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;

const USER: &str = "x-user-id";
const ROLES: &str = "x-roles";

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Orders for themselves, and sees what is theirs.
    Buyer,
    /// Sees everything.
    Operator,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Buyer => "buyer",
            Self::Operator => "operator",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Identity {
    user: HeaderValue,
    roles: Vec<Role>,
}

impl Identity {
    /// None if the user's name cannot stand in a header.
    pub fn new(user: &str, roles: Vec<Role>) -> Option<Self> {
        let plain = !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_graphic());
        Some(Self { user: HeaderValue::from_str(user).ok().filter(|_| plain)?, roles })
    }

    pub fn user(&self) -> &str {
        self.user.to_str().unwrap_or_default()
    }

    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether what belongs to this user may be shown.
    pub fn sees(&self, user: &str) -> bool {
        self.has(Role::Operator) || (self.has(Role::Buyer) && self.user() == user)
    }

    /// For the services.
    pub fn write_to(&self, headers: &mut HeaderMap) {
        let roles: Vec<_> = self.roles.iter().map(|role| role.name()).collect();
        headers.insert(USER, self.user.clone());
        if let Ok(roles) = HeaderValue::from_str(&roles.join(",")) {
            headers.insert(ROLES, roles);
        }
    }

    /// None if the gateway named nobody. What cannot be read has no roles.
    fn read_from(headers: &HeaderMap) -> Option<Self> {
        let user = headers.get(USER)?.clone();
        let roles = headers.get(ROLES).and_then(|roles| roles.to_str().ok()).unwrap_or_default();
        let roles =
            [Role::Buyer, Role::Operator].into_iter().filter(|role| roles.split(',').any(|it| it == role.name()));
        Some(Self { user, roles: roles.collect() })
    }
}

/// For a service: who asks. The gateway names nobody with `--no-auth`, nor do callers from inside the shop: they see everything, because only the gateway is open to
/// the world.
#[derive(Debug)]
pub struct Caller(Option<Identity>);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Identity::read_from(&parts.headers)))
    }
}

impl Caller {
    pub const fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Whether what belongs to this user may be shown.
    pub fn sees(&self, user: i64) -> bool {
        self.0.as_ref().is_none_or(|identity| identity.sees(&user.to_string()))
    }

    /// Whether an order may be placed for this user: nobody orders for somebody else.
    pub fn is(&self, user: i64) -> bool {
        self.0.as_ref().is_none_or(|identity| identity.user() == user.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(user: &'static str, roles: &'static str) -> Caller {
        let headers = [(USER, user), (ROLES, roles)]
            .map(|(name, value)| (axum::http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        Caller(Identity::read_from(&HeaderMap::from_iter(headers)))
    }

    #[test]
    fn a_buyer_sees_what_is_theirs_and_an_operator_everything() {
        assert!(caller("1", "buyer").sees(1));
        assert!(!caller("1", "buyer").sees(11));
        assert!(caller("1", "operator").sees(2));
        assert!(!caller("1", "").sees(1));
        assert!(!caller("1", "operators").sees(2));
        assert!(Caller(None).sees(2));
    }

    #[test]
    fn nobody_orders_for_somebody_else() {
        assert!(caller("1", "buyer").is(1));
        assert!(!caller("1", "buyer,operator").is(2));
        assert!(!caller("01", "buyer").is(1));
    }

    #[test]
    fn what_is_told_is_what_is_read() {
        let mut headers = HeaderMap::new();
        Identity::new("7", vec![Role::Buyer, Role::Operator]).unwrap().write_to(&mut headers);
        assert_eq!(headers[ROLES], "buyer,operator");
        let read = Identity::read_from(&headers).unwrap();
        assert_eq!((read.user(), read.has(Role::Buyer), read.has(Role::Operator)), ("7", true, true));
    }

    #[test]
    fn a_name_that_cannot_stand_in_a_header_is_nobodys() {
        for user in ["", "1\r\nx-roles: operator", "1 ", "ü"] {
            assert!(Identity::new(user, vec![]).is_none(), "{user}");
        }
    }
}
