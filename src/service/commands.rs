//! Commands over HTTP.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};

use super::routes::{Asked, Refusal, Shared, json_answer, refusal};
use super::told;
use crate::inspection::command::{Order, Source};
use crate::inspection::trigger::{Done, RefusalCode, Refused};

/// Does what a word and the fields of the body say.
pub(super) fn command(shared: &Shared, word: &str, asked: &Asked) -> Result<Response, Refusal> {
    let body: Map<String, Value> = asked.json()?;
    let mut fields = BTreeMap::new();
    for (key, value) in body {
        let value = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            // As if it were left out.
            Value::Null => continue,
            _ => return Err(refusal(StatusCode::BAD_REQUEST, "body", format!("'{key}' must be a text or a number"))),
        };
        fields.insert(key, value);
    }
    let order = Order::parse(word, &fields, source(asked)?)
        .map_err(|Refused { code, text }| refusal(StatusCode::BAD_REQUEST, code.word(), text))?;
    (shared.act)(order).map(tell).map_err(refuse)
}

/// The account that asks.
fn source(asked: &Asked) -> Result<Source, Refusal> {
    let known = asked.caller.account.as_ref().map(|(known, _)| known);
    let known = known.ok_or_else(|| refusal(StatusCode::UNAUTHORIZED, "unauthorized", "log in"))?;
    Ok(Source { who: known.name.clone(), from: format!("http {}", asked.caller.from), level: known.level })
}

fn tell(done: Done) -> Response {
    let status = if matches!(done, Done::Accepted { .. }) { StatusCode::ACCEPTED } else { StatusCode::OK };
    json_answer(status, &told(&done))
}

fn refuse(Refused { code, text }: Refused) -> Refusal {
    let status = match code {
        RefusalCode::NotReady | RefusalCode::NotAudited => StatusCode::SERVICE_UNAVAILABLE,
        RefusalCode::Bounced | RefusalCode::NotTriggered | RefusalCode::WrongState | RefusalCode::Uncalibrated => {
            StatusCode::CONFLICT
        }
        RefusalCode::Forbidden => StatusCode::FORBIDDEN,
        RefusalCode::Unknown => StatusCode::NOT_FOUND,
    };
    refusal(status, code.word(), text)
}
