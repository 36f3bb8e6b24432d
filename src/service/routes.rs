//! Every route of the HTTP service in one table: what it answers, and who may ask. The router is built from it, and
//! `docs/openapi.json` is compared with it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{FromRequestParts, RawPathParams, Request};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, HOST, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::guard::{Guard, Wait};
use super::http::Ticket;
use super::sessions::{self, Key, Sessions};
use super::{Act, Http, Read, commands, login, reads};
use crate::accounts::{AccountsError, Known};
use crate::inspection::account::Level;
use crate::inspection::audit::Deed;
use crate::inspection::command::Command;

/// Longest body, bytes.
const BODY: usize = 4 << 10;
/// The session's cookie.
pub const COOKIE_NAME: &str = "dsad_session";
/// Passwords that may wait for their turn.
const PROOFS: usize = 8;

/// Who may ask for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Anybody.
    Nothing,
    /// Anybody where `open_reads` says so, else an operator.
    Read,
    /// From this machine as `Read`, else an operator: it shows the plant's parts.
    Picture,
    /// Any account, even one that must change its password.
    Account,
    /// An account of this level.
    Level(Level),
}

/// What a route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table says it")]
pub enum What {
    Page,
    Api,
    Live,
    Ready,
    Metrics,
    Status,
    Picture,
    Events,
    Login,
    Logout,
    Password,
    Accounts,
    AddAccount,
    RemoveAccount,
    /// The command of this word.
    Command(&'static str),
}

/// One route.
#[derive(Debug, Clone)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with `{name}` for what varies.
    pub path: Cow<'static, str>,
    /// Who may.
    pub needs: Needs,
    /// What it answers.
    pub what: What,
}

/// All routes.
pub fn table() -> Vec<Route> {
    use Needs::{Account, Nothing, Picture, Read};
    let (operator, admin) = (Needs::Level(Level::Operator), Needs::Level(Level::Admin));
    let of = |word| Needs::Level(Command::level_of(word));
    let fixed = [
        (Method::GET, "/", Nothing, What::Page),
        (Method::GET, "/livez", Nothing, What::Live),
        (Method::GET, "/readyz", Read, What::Ready),
        (Method::GET, "/metrics", Read, What::Metrics),
        (Method::GET, "/v1/openapi.json", Nothing, What::Api),
        (Method::GET, "/v1/status", Read, What::Status),
        (Method::GET, "/v1/cameras/{name}/frame.jpg", Picture, What::Picture),
        (Method::GET, "/v1/events", operator, What::Events),
        (Method::POST, "/v1/login", Nothing, What::Login),
        (Method::POST, "/v1/logout", Account, What::Logout),
        (Method::POST, "/v1/password", Account, What::Password),
        (Method::GET, "/v1/accounts", admin, What::Accounts),
        (Method::POST, "/v1/accounts", admin, What::AddAccount),
        (Method::DELETE, "/v1/accounts/{name}", admin, What::RemoveAccount),
        // Short forms.
        (Method::POST, "/v1/trigger", of("StartSingleJob"), What::Command("StartSingleJob")),
        (Method::POST, "/v1/recipe", of("PrepareRecipe"), What::Command("PrepareRecipe")),
    ];
    let fixed = fixed.map(|(method, path, needs, what)| Route { method, path: path.into(), needs, what });
    let commands = Command::words().map(|(word, _)| Route {
        method: Method::POST,
        path: format!("/v1/commands/{word}").into(),
        needs: of(word),
        what: What::Command(word),
    });
    fixed.into_iter().chain(commands).collect()
}

/// What all answers share.
pub struct Shared {
    pub(super) read: Read,
    pub(super) act: Act,
    /// Nothing, where nobody can log in.
    pub(super) http: Option<Http>,
    pub(super) guard: Mutex<Guard>,
    pub(super) sessions: Mutex<Sessions>,
    /// One password is looked at at a time: each takes memory and a core.
    pub(super) proof: Arc<Semaphore>,
    /// Those that wait for it.
    pub(super) proofs: Semaphore,
    /// One answer that reads or draws at a time.
    pub(super) work: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(read: Read, act: Act, http: Option<Http>) -> Self {
        Self {
            read,
            act,
            http,
            guard: Mutex::default(),
            sessions: Mutex::default(),
            proof: Arc::new(Semaphore::new(1)),
            proofs: Semaphore::new(PROOFS),
            work: Arc::new(Semaphore::new(1)),
        }
    }
}

/// A lock that is held for the time of a look.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work that takes long or waits, beside the thread that answers; one at a time, even when who asked is gone.
pub(super) async fn aside<T: Send + 'static>(
    one: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let failed = |_| refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the answer could not be made");
    let place = Arc::clone(one).acquire_owned().await.map_err(|_| failed(()))?;
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        work()
    });
    work.await.map_err(|error| {
        log::error!("http: an answer failed: {error}");
        failed(())
    })
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Where from.
    pub from: IpAddr,
    /// The account and what its session is kept as; nothing before login.
    pub account: Option<(Known, Key)>,
}

impl Caller {
    /// The account's name, or where there is none yet what stands for one.
    pub fn name(&self) -> String {
        self.account.as_ref().map_or_else(|| "nobody".into(), |(known, _)| known.name.clone())
    }

    /// What it does, for the audit trail.
    pub fn deed(&self, what: &str, of: &str) -> Deed {
        let from = format!("http {}", self.from);
        Deed { who: self.name(), from, what: what.into(), of: of.into(), ..Deed::default() }
    }
}

/// A request whose sender may ask.
pub(super) struct Asked {
    pub caller: Caller,
    /// What stands for `{name}`.
    pub name: String,
    /// After the `?`.
    pub query: String,
    pub body: Vec<u8>,
}

impl Asked {
    /// The body as JSON; an empty one is an empty object.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| {
            refusal(StatusCode::BAD_REQUEST, "body", format!("the body is not what is asked for: {error}"))
        })
    }
}

/// The router.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in table() {
        // The table has no other methods than those that a filter knows.
        let Ok(filter) = MethodFilter::try_from(route.method.clone()) else { continue };
        let (shared, path) = (Arc::clone(shared), route.path.clone());
        let route = Arc::new(route);
        let answer = move |request: Request| answer(Arc::clone(&shared), Arc::clone(&route), request);
        router = router.route(&path, on(filter, answer));
    }
    router.fallback(|| async { refusal(StatusCode::NOT_FOUND, "unknown", "no such route; docs/http.md lists them") })
}

async fn answer(shared: Arc<Shared>, route: Arc<Route>, request: Request) -> Response {
    let mut answer = match admit(&shared, &route, request).await {
        Ok((asked, ticket)) => {
            let _busy = ticket.busy();
            respond(&shared, route.what, asked).await.unwrap_or_else(IntoResponse::into_response)
        }
        Err(refusal) => refusal.into_response(),
    };
    let headers = answer.headers_mut();
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Whether it may be asked, and what.
async fn admit(shared: &Shared, route: &Route, request: Request) -> Result<(Asked, Ticket), Refusal> {
    let (mut parts, body) = request.into_parts();
    let ticket = parts.extensions.get::<Ticket>().cloned();
    let ticket = ticket.ok_or_else(|| refusal(StatusCode::INTERNAL_SERVER_ERROR, "internal", "from nowhere"))?;
    let from = ticket.peer;
    if let Some(http) = &shared.http {
        hold(&shared.guard).request(from, http.clock.now()).map_err(too_many)?;
    }
    let account = account(shared, &parts.headers);
    permit(shared, route, from, account.as_ref(), &parts)?;
    // Where nobody needs to be known, it does not matter why nobody is.
    let caller = Caller { from, account: account.unwrap_or_default() };
    let name = match RawPathParams::from_request_parts(&mut parts, &()).await {
        Ok(names) => names.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default(),
        Err(_) => return Err(refusal(StatusCode::NOT_FOUND, "unknown", "the path is no text")),
    };
    let body = to_bytes(body, BODY).await.map_err(|_| {
        let text = format!("the body is longer than {BODY} bytes, or was not sent whole");
        refusal(StatusCode::PAYLOAD_TOO_LARGE, "body", text)
    })?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    Ok((Asked { caller, name, query, body: body.into() }, ticket))
}

/// The account of a token, from the header or the page's cookie.
fn account(shared: &Shared, headers: &HeaderMap) -> Result<Option<(Known, Key)>, AccountsError> {
    let (Some(http), Some(token)) = (&shared.http, token(headers)) else { return Ok(None) };
    let key = sessions::key(token);
    let known = hold(&shared.sessions).account(&key, http.clock.now(), |name| http.accounts.known(name));
    login::tell_noticed(http);
    known.map(|known| known.map(|known| (known, key)))
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer =
        headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|text| text.strip_prefix("Bearer "));
    let cookies =
        headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(';'));
    let mut cookies = cookies.filter_map(|pair| pair.trim().split_once('='));
    bearer.or_else(|| cookies.find(|(name, _)| *name == COOKIE_NAME).map(|(_, token)| token))
}

/// Whether this account, from there, may ask for a route.
fn permit(
    shared: &Shared,
    route: &Route,
    from: IpAddr,
    account: Result<&Option<(Known, Key)>, &AccountsError>,
    parts: &Parts,
) -> Result<(), Refusal> {
    if !parts.method.is_safe() {
        same_origin(&parts.headers, shared.http.as_ref().is_some_and(|http| http.tls.is_some()))?;
    }
    let open = shared.http.as_ref().is_none_or(|http| http.open_reads);
    let near = from.is_loopback();
    let needed = match route.needs {
        Needs::Nothing => return Ok(()),
        Needs::Read if open => return Ok(()),
        Needs::Picture if open && near => return Ok(()),
        Needs::Read | Needs::Picture => Some(Level::Operator),
        Needs::Account => None,
        Needs::Level(level) => Some(level),
    };
    let Some((known, _)) = account.map_err(login::damaged)? else {
        let text = "log in: POST /v1/login, then send its token as 'Authorization: Bearer TOKEN'";
        return Err(refusal(StatusCode::UNAUTHORIZED, "unauthorized", text));
    };
    let Some(needed) = needed else { return Ok(()) };
    if known.must_change {
        let text = "the first password must be changed before anything else: POST /v1/password";
        return Err(refusal(StatusCode::FORBIDDEN, "change_password", text));
    }
    if known.level < needed {
        let text = format!("this is for a {needed}, and '{}' is {}", known.name, known.level);
        return Err(refusal(StatusCode::FORBIDDEN, "forbidden", text));
    }
    Ok(())
}

/// A browser says which page asks: only the station's own may change anything. Its cookie alone proves nothing, because the
/// browser adds it for whoever makes it ask.
fn same_origin(headers: &HeaderMap, tls: bool) -> Result<(), Refusal> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let scheme = if tls { "https" } else { "http" };
    let by_cookie = headers.contains_key(COOKIE) && !headers.contains_key(AUTHORIZATION);
    match (text(ORIGIN), text(HOST)) {
        (Some(origin), Some(host)) if *origin == format!("{scheme}://{host}") => Ok(()),
        (None, _) if !by_cookie => Ok(()),
        (None, _) => {
            let text = "a cookie is taken from the station's own page alone; others send 'Authorization: Bearer TOKEN'";
            Err(refusal(StatusCode::FORBIDDEN, "forbidden", text))
        }
        (Some(_), _) => {
            let text = "commands are not taken from web pages of others";
            Err(refusal(StatusCode::FORBIDDEN, "forbidden", text))
        }
    }
}

async fn respond(shared: &Arc<Shared>, what: What, asked: Asked) -> Result<Response, Refusal> {
    match what {
        What::Page => reads::page(),
        What::Api => Ok(([(CONTENT_TYPE, "application/json")], reads::OPENAPI).into_response()),
        What::Live => Ok("ok\n".into_response()),
        What::Ready => Ok(reads::ready(&shared.read)),
        What::Metrics => Ok(reads::counters(&shared.read)),
        What::Status => Ok(reads::status(shared, &asked)),
        What::Picture => reads::picture(shared, asked).await,
        What::Events => reads::events(shared, asked).await,
        What::Login => login::login(shared, asked).await,
        What::Logout => login::logout(shared, &asked),
        What::Password => login::password(shared, asked).await,
        What::Accounts => login::accounts(shared).await,
        What::AddAccount => login::add(shared, asked).await,
        What::RemoveAccount => login::remove(shared, asked).await,
        What::Command(word) => commands::command(shared, word, &asked),
    }
}

/// Why an answer is none, for machines and for people.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    word: &'static str,
    text: String,
    /// Seconds after which it may be tried again.
    after: Option<u64>,
}

impl Refusal {
    /// The same, to be tried again after so many seconds.
    pub fn later(self, seconds: u64) -> Self {
        Self { after: Some(seconds), ..self }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut answer = json_answer(self.status, &json!({"error": self.word, "text": self.text}));
        if let Some(seconds) = self.after {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

pub(super) fn refusal(status: StatusCode, word: &'static str, text: impl Into<String>) -> Refusal {
    Refusal { status, word, text: text.into(), after: None }
}

pub(super) fn too_many(Wait(seconds): Wait) -> Refusal {
    let text = format!("too many requests; again in {seconds} s");
    refusal(StatusCode::TOO_MANY_REQUESTS, "too_many", text).later(seconds)
}

pub(super) fn json_answer(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
