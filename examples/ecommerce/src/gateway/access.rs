//! Who may ask for what: the list of all that goes through the gateway. What is not on it does not exist.
//!
//! What belongs to a user by the request's address is decided here. Whose order it is that has an id, only the order service knows: it decides by the identity that it is told.

use super::{Refusal, tokens::Caller};
use crate::identity::Role;
use axum::{
    extract::Query,
    http::{HeaderValue, Method, StatusCode, Uri, header},
};
use serde::Deserialize;

/// All addresses of the API; `/api/v1` may stand before each.
pub const ADDRESSES: [&str; 12] = [
    "/orders",
    "/orders/{id}",
    "/orders/{id}/events",
    "/orders/{id}/history",
    "/orders/{id}/picture",
    "/products",
    "/products/{id}",
    "/users/{id}",
    "/accounts/{id}",
    "/inventory/{id}",
    "/deliveries",
    "/notifications",
];

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whom to ask.
    pub service: &'static str,
    /// Path and query there.
    pub path: String,
    /// Whether the answer goes on until its end is told.
    pub endless: bool,
    who: Who,
}

/// Who may have it.
#[derive(Debug, PartialEq, Eq)]
enum Who {
    Everybody,
    /// The service says which of them.
    Known,
    Buyers,
    /// The one whose it is; without one, it is everybody's.
    User(Option<String>),
    Operators,
}

impl Wanted {
    pub fn of(method: &Method, uri: &Uri) -> Result<Self, Refusal> {
        let path = uri.path();
        let path = path.strip_prefix("/api/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path);
        let segments = plain(path).ok_or_else(nothing_here)?;
        let service = match segments[0] {
            "orders" => "order",
            "users" => "user",
            "products" => "product",
            "inventory" => "inventory",
            "deliveries" => "delivery",
            "notifications" => "notification",
            "accounts" => "payment",
            _ => return Err(nothing_here()),
        };
        let reads = [Method::GET, Method::HEAD].contains(method);
        let who = match *segments {
            ["orders"] if method == Method::POST => Who::Buyers,
            _ if !reads => {
                return Err(not_allowed(if segments == ["orders"] { "GET, HEAD, POST" } else { "GET, HEAD" }));
            }
            ["products", ..] => Who::Everybody,
            ["orders" | "notifications" | "deliveries"] => Who::User(user_in(uri)),
            ["accounts" | "users", user] => Who::User(Some(user.into())),
            ["orders", _] | ["orders", _, "events" | "history" | "picture"] => Who::Known,
            _ => Who::Operators,
        };
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let endless = matches!(*segments, ["orders", _, "events"]);
        Ok(Self { service, path: format!("{path}{query}"), endless, who })
    }

    pub fn granted_to(&self, caller: &Caller) -> Result<(), Refusal> {
        self.who.granted_to(caller)
    }
}

/// For what the gateway answers itself.
pub fn only_operators(caller: &Caller) -> Result<(), Refusal> {
    Who::Operators.granted_to(caller)
}

impl Who {
    fn granted_to(&self, caller: &Caller) -> Result<(), Refusal> {
        let identity = match (caller, self) {
            (Caller::Anybody, _) | (_, Self::Everybody) => return Ok(()),
            (Caller::Unknown, _) => return Err(super::tokens::unauthorized("a token is needed")),
            (Caller::Known(identity), _) => identity,
        };
        let granted = match self {
            Self::Everybody | Self::Known => identity.has(Role::Buyer) || identity.has(Role::Operator),
            Self::Buyers => identity.has(Role::Buyer),
            Self::User(Some(user)) => identity.sees(user),
            Self::User(None) | Self::Operators => identity.has(Role::Operator),
        };
        match (granted, self) {
            (true, _) => Ok(()),
            (false, Self::Buyers) => Err(Refusal::new(StatusCode::FORBIDDEN, "only buyers order")),
            (false, Self::User(None)) => Err(Refusal::new(StatusCode::FORBIDDEN, "say your own userId in the query")),
            (false, Self::User(_)) => Err(Refusal::new(StatusCode::FORBIDDEN, "this is somebody else's")),
            (false, _) => Err(Refusal::new(StatusCode::FORBIDDEN, "only operators see this")),
        }
    }
}

/// The parts of a path, if there is only one way to read it: nothing is encoded, nothing is empty, nothing leads up.
fn plain(path: &str) -> Option<Vec<&str>> {
    let segments: Vec<_> = path.strip_prefix('/')?.split('/').collect();
    let is_plain = |segment: &&str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !segment.is_empty() && *segment != "." && *segment != ".." && segment.bytes().all(known)
    };
    segments.iter().all(is_plain).then_some(segments)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfUser {
    user_id: String,
}

/// Read as the services read it: also there, a name that comes twice is an error.
fn user_in(uri: &Uri) -> Option<String> {
    Query::<OfUser>::try_from_uri(uri).ok().map(|Query(of)| of.user_id)
}

fn nothing_here() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is nothing here")
}

fn not_allowed(allowed: &'static str) -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this cannot be done here")
        .with(header::ALLOW, HeaderValue::from_static(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use axum::response::IntoResponse;

    /// The status for a caller; 200 if it goes through.
    fn asked(caller: &Caller, method: &str, uri: &str) -> u16 {
        let wanted = Wanted::of(&method.parse().unwrap(), &uri.parse().unwrap());
        match wanted.and_then(|wanted| wanted.granted_to(caller)) {
            Ok(()) => 200,
            Err(refusal) => refusal.into_response().status().as_u16(),
        }
    }

    fn known(roles: &[Role]) -> Caller {
        Caller::Known(Identity::new("1", roles.to_vec()).unwrap())
    }

    #[test]
    fn everything_has_its_readers() {
        // method, address, without a token, buyer 1, operator, neither
        for (method, uri, expected) in [
            ("GET", "/products", [200, 200, 200, 200]),
            ("GET", "/api/v1/products/1", [200, 200, 200, 200]),
            ("HEAD", "/products?category=laptop", [200, 200, 200, 200]),
            ("POST", "/orders", [401, 200, 403, 403]),
            ("POST", "/api/v1/orders", [401, 200, 403, 403]),
            ("GET", "/orders/x", [401, 200, 200, 403]),
            ("GET", "/orders/x/events", [401, 200, 200, 403]),
            ("GET", "/orders/x/history", [401, 200, 200, 403]),
            ("GET", "/orders/x/picture?as=mermaid", [401, 200, 200, 403]),
            ("GET", "/orders", [401, 403, 200, 403]),
            ("GET", "/orders?userId=1", [401, 200, 200, 403]),
            ("GET", "/orders?userId=2", [401, 403, 200, 403]),
            ("GET", "/orders?userId=1&userId=2", [401, 403, 200, 403]),
            ("GET", "/orders?%75serId=2", [401, 403, 200, 403]),
            ("GET", "/orders?userId=1%20OR%201=1", [401, 403, 200, 403]),
            ("GET", "/notifications?userId=2", [401, 403, 200, 403]),
            ("GET", "/deliveries?userId=1", [401, 200, 200, 403]),
            ("GET", "/accounts/1", [401, 200, 200, 403]),
            ("GET", "/accounts/2", [401, 403, 200, 403]),
            ("GET", "/users/01", [401, 403, 200, 403]),
            ("GET", "/inventory/1", [401, 403, 200, 403]),
            ("GET", "/accounts/1/payments", [401, 403, 200, 403]),
        ] {
            let callers = [Caller::Unknown, known(&[Role::Buyer]), known(&[Role::Operator]), known(&[])];
            assert_eq!(callers.map(|caller| asked(&caller, method, uri)), expected, "{method} {uri}");
        }
    }

    #[test]
    fn commands_of_the_saga_and_crooked_paths_lead_nowhere() {
        for (method, uri, status) in [
            ("POST", "/deliveries", 405),
            ("POST", "/payments", 404),
            ("POST", "/reservations", 404),
            ("DELETE", "/orders/x", 405),
            ("GET", "/x", 404),
            ("GET", "/books", 404),
            ("GET", "/orders/../books", 404),
            ("GET", "/orders/%2e%2e/books", 404),
            ("GET", "//orders", 404),
            ("GET", "/orders/", 404),
            ("GET", "/products/1;DROP", 404),
            ("GET", "/api/v1orders", 404),
            ("GET", "/api/v1/api/v1/orders", 404),
        ] {
            assert_eq!(asked(&Caller::Anybody, method, uri), status, "{method} {uri}");
        }
    }

    #[test]
    fn the_version_is_the_gateways_and_the_query_the_services() {
        let wanted = Wanted::of(&Method::GET, &Uri::from_static("/api/v1/orders?userId=1&x=%20")).unwrap();
        assert_eq!((wanted.service, &*wanted.path, wanted.endless), ("order", "/orders?userId=1&x=%20", false));
        assert!(Wanted::of(&Method::GET, &Uri::from_static("/orders/x/events")).unwrap().endless);
    }
}
