//! How the saga calls a participant, and what the answers mean.

use crate::telemetry::Client;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use saga_core::{Class, OrClass, StepError, participant::Command};
use serde::{Deserialize, de::DeserializeOwned};

pub struct Participant {
    http: Client,
    url: String,
}

impl Participant {
    pub fn at(url: impl Into<String>) -> Self {
        Self { http: Client::new(reqwest::Client::new()), url: url.into() }
    }

    /// A command and the answer to it, or its undo, which has the same key.
    pub async fn command<C: Command>(&self, path: &str, key: &str, command: &C) -> Result<C::Reply, StepError> {
        let request = self.http.request(Method::POST, &format!("{}{path}", self.url)).header("Idempotency-Key", key);
        answer(&self.http, request.json(command)).await
    }
}

/// Time is not limited here: each step has its timeout.
async fn answer<T: DeserializeOwned>(http: &Client, request: RequestBuilder) -> Result<T, StepError> {
    // Who could not be reached did nothing. Any other error, and it may have happened.
    let response =
        http.send(request).await.classify(|error| if error.is_connect() { Class::Retry } else { Class::Unknown })?;
    match response.status() {
        status if status.is_success() => Ok(response.json().await?),
        StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => Err(StepError::fail(reason(response).await?)),
        status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            Err(StepError::retry(status.to_string()))
        }
        status => Err(StepError::unknown(format!("{status}: {}", reason(response).await?))),
    }
}

/// The detail of a problem (RFC 9457), else the text as it is.
async fn reason(response: Response) -> Result<String, StepError> {
    let text = response.text().await?;
    Ok(serde_json::from_str(&text).map_or(text, |problem: Problem| problem.detail))
}

#[derive(Deserialize)]
struct Problem {
    detail: String,
}
