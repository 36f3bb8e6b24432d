//! What is read over HTTP: state, counters, events, pictures, the page.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use super::Read;
use super::metrics::{self, CameraReading};
use super::routes::{Asked, Refusal, Shared, aside, json_answer, refusal};
use crate::inspection::time::rfc3339;

/// What the service answers, for machines.
pub const OPENAPI: &str = include_str!("../../docs/openapi.json");
/// The page, which needs nothing from anywhere else.
const PAGE: &str = include_str!("page.html");
/// Events of one answer, unless it is said, and at most.
const EVENTS: (usize, usize) = (100, 500);

pub(super) fn ready(read: &Read) -> Response {
    let reading = read();
    let (state, reasons) = (reading.state, reading.obstacles);
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body =
        json!({"ready": reasons.is_empty(), "state": state.word(), "state_number": state.number(), "reasons": reasons});
    json_answer(status, &body)
}

pub(super) fn counters(read: &Read) -> Response {
    match metrics::text(read()) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()).into_response(),
    }
}

/// The page, with a number that allows its own script and style and nobody else's.
pub(super) fn page() -> Result<Response, Refusal> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        refusal(StatusCode::SERVICE_UNAVAILABLE, "internal", format!("the system gives no randomness: {error}"))
    })?;
    let nonce = format!("{:032x}", u128::from_le_bytes(bytes));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    Ok(([(CONTENT_SECURITY_POLICY, policy)], Html(PAGE.replace("{nonce}", &nonce))).into_response())
}

pub(super) fn status(shared: &Shared, asked: &Asked) -> Response {
    let reading = (shared.read)();
    let account = asked.caller.account.as_ref();
    let http = shared.http.as_ref();
    let sinks: Value = reading.sink_errors.iter().map(|(sink, count)| (sink.clone(), json!(count))).collect();
    let body = json!({
        "station": http.map(|http| &http.station),
        "version": env!("CARGO_PKG_VERSION"),
        "since": rfc3339(reading.started_nanos),
        "now": http.map(|http| rfc3339(http.clock.wall_nanos())),
        "state": reading.state.word(),
        "state_since": rfc3339(reading.state_since_nanos),
        "ready": reading.obstacles.is_empty(),
        "reasons": reading.obstacles,
        "cameras": reading.cameras.iter().map(camera).collect::<Vec<_>>(),
        "sink_errors": sinks,
        "account": account.map(|(known, _)| {
            json!({"user": known.name, "level": known.level, "must_change": known.must_change})
        }),
    });
    json_answer(StatusCode::OK, &body)
}

fn camera(reading: &CameraReading) -> Value {
    let count =
        |word| reading.inspections.iter().filter(|(verdict, ..)| *verdict == word).map(|row| row.2).sum::<u64>();
    let (pass, fail, fault) = (count("pass"), count("fail"), count("fault"));
    let judged = pass + fail + fault;
    json!({
        "camera": reading.camera,
        "recipe": reading.recipe,
        "frames": reading.frames,
        "pass": pass,
        "fail": fail,
        "fault": fault,
        // Of what was inspected, faults among it: a part that was not judged is not a good one.
        "yield": (judged > 0).then(|| pass as f64 / judged as f64),
        "overruns": reading.overruns,
        "late": reading.late,
        "triggers_refused": reading.triggers_refused,
        "driver_drops": reading.dropped,
        "losses": reading.losses,
        "drift": reading.drift.map(|(_, drift)| drift.words()).unwrap_or_default(),
    })
}

pub(super) async fn picture(shared: &Arc<Shared>, asked: Asked) -> Result<Response, Refusal> {
    let none = || refusal(StatusCode::NOT_FOUND, "unknown", "no picture of that camera, or none yet");
    let draw = shared.http.as_ref().and_then(|http| http.picture.clone()).ok_or_else(none)?;
    let jpeg = aside(&shared.work, move || draw(&asked.name)).await?.ok_or_else(none)?;
    Ok(([(CONTENT_TYPE, "image/jpeg")], jpeg).into_response())
}

pub(super) async fn events(shared: &Arc<Shared>, asked: Asked) -> Result<Response, Refusal> {
    let none = || refusal(StatusCode::NOT_FOUND, "unknown", "this station keeps no events to read");
    let recent = shared.http.as_ref().and_then(|http| http.recent.clone()).ok_or_else(none)?;
    let wrong = |text: &str| refusal(StatusCode::BAD_REQUEST, "query", text);
    let (mut after, mut limit) = (None, EVENTS.0);
    for (key, value) in
        asked.query.split('&').filter(|pair| !pair.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
    {
        match key {
            "after" if value.len() == 26 && value.bytes().all(|c| c.is_ascii_alphanumeric()) => {
                after = Some(value.to_owned())
            }
            "after" => return Err(wrong("after must be an event_id")),
            "limit" => match value.parse() {
                Ok(number) if (1..=EVENTS.1).contains(&number) => limit = number,
                _ => return Err(wrong(&format!("limit must be 1 to {}", EVENTS.1))),
            },
            _ => return Err(wrong("there are after=EVENT_ID and limit=N")),
        }
    }
    let found = aside(&shared.work, move || recent(after.as_deref(), limit)).await?;
    let found = found.map_err(|text| refusal(StatusCode::SERVICE_UNAVAILABLE, "store", text))?;
    let body = format!("{{\"events\":[{}]}}\n", found.join(","));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}
