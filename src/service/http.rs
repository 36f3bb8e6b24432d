//! The HTTP service: who may connect, for how long, and what is answered.
//!
//! | route | answer |
//! |---|---|
//! | `GET /livez` | 200 while the process runs |
//! | `GET /readyz` | 200 when the detectors are loaded and frames come, else 503; JSON with the reasons |
//! | `GET /metrics` | the counters, see `docs/metrics.md` |
//! | `POST /v1/trigger` | 202 when the trigger of a JSON body `{"camera", "part_id"}` was accepted, with the inspection's number |
//! | `POST /v1/recipe` | 200 when the recipe of `{"recipe", "camera"}` judges from the next part on |
//!
//! Commands are taken from this machine alone: nobody else is asked for a password. One request per connection, of a bounded
//! length: whoever is slow, idle or many takes a place for a bounded time, in this thread alone.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Act, Read, accept, metrics};
use crate::inspection::account::Level;
use crate::inspection::command::{Command, Order, RecipeName, Source};
use crate::inspection::recipe::RecipeId;
use crate::inspection::trigger::{Done, RefusalCode, Refused};

/// Connections at once; more wait in the system's queue until a place is free.
pub const PLACES: u32 = 64;
/// Longest time from connecting to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request line with headers, bytes.
const HEADER: usize = 16 << 10;
/// Longest body, bytes.
const BODY: usize = 4 << 10;

/// Answers whoever connects.
pub async fn serve(listener: tokio::net::TcpListener, read: Read, act: Act, places: Arc<Semaphore>) {
    serve_patiently(listener, read, act, places, PATIENCE).await;
}

async fn serve_patiently(
    listener: tokio::net::TcpListener,
    read: Read,
    act: Act,
    places: Arc<Semaphore>,
    patience: Duration,
) {
    let (near, far) = (routes(&read).merge(commands(act)), routes(&read).merge(no_commands()));
    accept(listener, places, move |stream, peer, place| {
        let routes = if peer.ip().to_canonical().is_loopback() { near.clone() } else { far.clone() };
        async move {
            let answer = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(HEADER)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            match timeout(patience, answer).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::debug!("http: {peer}: {error}"),
                Err(_) => log::debug!("http: {peer}: cut off after {patience:?}"),
            }
            drop(place);
        }
    })
    .await;
}

fn routes(read: &Read) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(counters))
        .with_state(Arc::clone(read))
}

fn commands(act: Act) -> Router {
    Router::new()
        .route("/v1/trigger", post(trigger))
        .route("/v1/recipe", post(recipe))
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(act)
}

/// What others get in place of the commands.
fn no_commands() -> Router {
    let refuse = || async { forbidden("commands are taken from this machine alone") };
    Router::new().route("/v1/trigger", post(refuse)).route("/v1/recipe", post(refuse))
}

fn forbidden(text: &str) -> Response {
    json_answer(StatusCode::FORBIDDEN, &json!({"error": "forbidden", "text": text}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TriggerBody {
    camera: Option<String>,
    part_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeBody {
    camera: Option<String>,
    recipe: String,
}

async fn trigger(State(act): State<Act>, headers: HeaderMap, body: Bytes) -> Response {
    obey::<TriggerBody>(&act, &headers, &body, |TriggerBody { camera, part_id }| Command::StartSingleJob {
        camera,
        part_id,
    })
}

async fn recipe(State(act): State<Act>, headers: HeaderMap, body: Bytes) -> Response {
    obey::<RecipeBody>(&act, &headers, &body, |RecipeBody { camera, recipe }| Command::PrepareRecipe {
        camera,
        recipe: RecipeName::Id(RecipeId(recipe)),
    })
}

fn obey<T: DeserializeOwned>(act: &Act, headers: &HeaderMap, body: &[u8], command: impl Fn(T) -> Command) -> Response {
    // A browser on this machine says where the page is from that asks: no page may command the line.
    if headers.contains_key(ORIGIN) {
        return forbidden("commands are not taken from web pages");
    }
    // A trigger without anything to say of the part needs no body.
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    let asked = match serde_json::from_slice(body) {
        Ok(asked) => command(asked),
        Err(error) => {
            let text = format!("the body is not what is asked for: {error}");
            return json_answer(StatusCode::BAD_REQUEST, &json!({"error": "body", "text": text}));
        }
    };
    // Whoever is on this machine may command what routes there are.
    let order = Order { command: asked, source: Source::unnamed("http", "this machine", Level::Technician) };
    match act(order) {
        Ok(Done::Accepted { camera, frame_id }) => {
            json_answer(StatusCode::ACCEPTED, &json!({"camera": camera, "frame_id": frame_id}))
        }
        Ok(Done::Prepared { cameras }) => json_answer(StatusCode::OK, &json!({"cameras": cameras})),
        Ok(Done::Entered { state }) => json_answer(StatusCode::OK, &json!({"state": state.word()})),
        Err(Refused { code, text }) => {
            let status = match code {
                RefusalCode::NotReady | RefusalCode::NotAudited => StatusCode::SERVICE_UNAVAILABLE,
                RefusalCode::Bounced
                | RefusalCode::NotTriggered
                | RefusalCode::WrongState
                | RefusalCode::Uncalibrated => StatusCode::CONFLICT,
                RefusalCode::Forbidden => StatusCode::FORBIDDEN,
                RefusalCode::Unknown => StatusCode::NOT_FOUND,
            };
            json_answer(status, &json!({"error": code.word(), "text": text}))
        }
    }
}

fn json_answer(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

async fn ready(State(read): State<Read>) -> Response {
    let reasons = read().obstacles;
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_answer(status, &json!({"ready": reasons.is_empty(), "reasons": reasons}))
}

async fn counters(State(read): State<Read>) -> Response {
    match metrics::text(read()) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use tokio::sync::oneshot;

    use super::super::metrics::Reading;
    use super::super::until;
    use super::*;

    #[test]
    fn who_is_slow_gives_the_place_back() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        listener.set_nonblocking(true).expect("is set");
        let address = listener.local_addr().expect("address");
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("listens");
                let (read, places) = (Arc::new(Reading::default), Arc::new(Semaphore::new(2)));
                let act: Act = Arc::new(|_| Err(Refused::new(RefusalCode::NotReady, "")));
                until(stopped, serve_patiently(listener, read, act, places, Duration::from_millis(200))).await;
            });
        });
        let idle: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect(address).expect("connects")).collect();
        let mut client = TcpStream::connect(address).expect("connects");
        client.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").expect("asks");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("answers");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"ready\":true"), "{answer}");
        for mut client in idle {
            assert_eq!(client.read(&mut [0]).expect("is closed"), 0);
        }
        drop(stop);
        serving.join().expect("stops");
    }
}
