//! Logging in and out, passwords and accounts. Everything goes to the audit trail before it is done.

use std::sync::Arc;

use axum::http::header::SET_COOKIE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::Http;
use super::guard::Wait;
use super::routes::{Asked, COOKIE_NAME, Caller, Refusal, Shared, aside, hold, json_answer, refusal, too_many};
use super::sessions::LIFE;
use crate::accounts::{AccountsError, Known};
use crate::inspection::account::Level;
use crate::inspection::audit::Deed;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoginBody {
    user: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PasswordBody {
    old: String,
    new: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccountBody {
    name: String,
    level: Level,
    password: String,
}

pub(super) async fn login(shared: &Arc<Shared>, asked: Asked) -> Result<Response, Refusal> {
    let http = settings(shared)?;
    let LoginBody { user, password } = asked.json()?;
    let known = prove(shared, http, &asked.caller, "login", user, password).await?;
    let deed = Deed { who: known.name.clone(), ..asked.caller.deed("login", &known.name) };
    audit(http, deed)?;
    open(shared, http, &known)
}

pub(super) fn logout(shared: &Arc<Shared>, asked: &Asked) -> Result<Response, Refusal> {
    let http = settings(shared)?;
    let (known, key) = own(&asked.caller)?;
    audit(http, asked.caller.deed("logout", &known.name))?;
    hold(&shared.sessions).close(key);
    let mut answer = json_answer(StatusCode::OK, &json!({}));
    set_cookie(&mut answer, http, "", 0);
    Ok(answer)
}

pub(super) async fn password(shared: &Arc<Shared>, asked: Asked) -> Result<Response, Refusal> {
    let http = settings(shared)?;
    let PasswordBody { old, new } = asked.json()?;
    let name = own(&asked.caller)?.0.name.clone();
    prove(shared, http, &asked.caller, "password", name.clone(), old).await?;
    audit(http, asked.caller.deed("password", &name))?;
    let (accounts, of) = (Arc::clone(&http.accounts), name.clone());
    let changed = aside(&shared.proof, move || accounts.set_password(&of, &new).and_then(|()| accounts.known(&of)));
    match changed.await? {
        // The session ended with its password.
        Ok(Some(known)) => open(shared, http, &known),
        Ok(None) => Err(refusal(StatusCode::NOT_FOUND, "unknown", format!("no account '{name}'"))),
        Err(error) => Err(undone(http, asked.caller.deed("password", &name), &error)),
    }
}

pub(super) async fn accounts(shared: &Arc<Shared>) -> Result<Response, Refusal> {
    let accounts = Arc::clone(&settings(shared)?.accounts);
    let all = aside(&shared.work, move || accounts.list()).await?.map_err(|error| damaged(&error))?;
    let all: Vec<_> = all
        .iter()
        .map(|known| json!({"name": known.name, "level": known.level, "must_change": known.must_change}))
        .collect();
    Ok(json_answer(StatusCode::OK, &json!({"accounts": all})))
}

pub(super) async fn add(shared: &Arc<Shared>, asked: Asked) -> Result<Response, Refusal> {
    let http = settings(shared)?;
    let AccountBody { name, level, password } = asked.json()?;
    let deed = Deed { new: Some(level.word().into()), ..asked.caller.deed("add_account", &name) };
    audit(http, deed.clone())?;
    let (accounts, of) = (Arc::clone(&http.accounts), name.clone());
    let added = aside(&shared.proof, move || accounts.add(&of, level, &password)).await?;
    added.map_err(|error| undone(http, deed, &error))?;
    Ok(json_answer(StatusCode::CREATED, &json!({"name": name, "level": level})))
}

pub(super) async fn remove(shared: &Arc<Shared>, asked: Asked) -> Result<Response, Refusal> {
    let http = settings(shared)?;
    let deed = asked.caller.deed("remove_account", &brief(&asked.name));
    audit(http, deed.clone())?;
    let (accounts, name) = (Arc::clone(&http.accounts), asked.name);
    let removed = aside(&shared.work, move || accounts.remove(&name)).await?;
    removed.map_err(|error| undone(http, deed, &error))?;
    Ok(json_answer(StatusCode::OK, &json!({})))
}

/// The account, if this is its password. A wrong one is counted, told and, after some, locked.
async fn prove(
    shared: &Arc<Shared>,
    http: &Http,
    caller: &Caller,
    what: &str,
    user: String,
    password: String,
) -> Result<Known, Refusal> {
    let busy = || refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", "other passwords are looked at").later(1);
    let _turn = shared.proofs.try_acquire().map_err(|_| busy())?;
    let locks = hold(&shared.guard).attempt(caller.from, &user, http.clock.now()).map_err(too_many)?;
    let accounts = Arc::clone(&http.accounts);
    let name = user.clone();
    let proof = aside(&shared.proof, move || accounts.prove(&name, &password)).await?;
    tell_noticed(http);
    if let Some(known) = proof.map_err(|error| damaged(&error))? {
        hold(&shared.guard).right(caller.from, &user);
        return Ok(known);
    }
    let user = brief(&user);
    log::warn!("http: {}: wrong password for '{user}'", caller.from);
    let wrong = caller.deed(what, &user);
    let said =
        locks.map_or_else(|| "wrong password".into(), |seconds| format!("wrong password; locked for {seconds} s"));
    // There is nothing to refuse: it is refused already.
    if let Err(error) = (http.audit)(Deed { refused: Some(said), ..wrong }) {
        log::error!("audit: a wrong password of '{user}' is not in the trail: {error}");
    }
    match locks {
        Some(seconds) => Err(too_many(Wait(seconds))),
        None => {
            let text = "no such account, or not its password";
            Err(refusal(StatusCode::UNAUTHORIZED, "wrong_password", text))
        }
    }
}

/// Opens a session and tells its token.
fn open(shared: &Shared, http: &Http, known: &Known) -> Result<Response, Refusal> {
    let token = hold(&shared.sessions).open(known, http.clock.now()).map_err(|error| {
        log::error!("http: no session: {error}");
        refusal(StatusCode::SERVICE_UNAVAILABLE, "internal", "the system gives no randomness")
    })?;
    let body = json!({"token": token, "user": known.name, "level": known.level, "must_change": known.must_change,
                      "expires_s": LIFE});
    let mut answer = json_answer(StatusCode::OK, &body);
    set_cookie(&mut answer, http, &token, LIFE);
    Ok(answer)
}

fn set_cookie(answer: &mut Response, http: &Http, token: &str, seconds: u64) {
    let secure = if http.tls.is_some() { "; Secure" } else { "" };
    let cookie = format!("{COOKIE_NAME}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}");
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
}

/// What others did to the file of accounts goes to the trail when it is seen.
pub(super) fn tell_noticed(http: &Http) {
    for noticed in http.accounts.noticed() {
        let (who, from, what) = ("station".into(), "accounts.toml".into(), "account".into());
        let deed = Deed { who, from, what, of: noticed.name, old: noticed.old, new: noticed.new, refused: None };
        if let Err(error) = (http.audit)(deed) {
            log::error!("audit: a change of the accounts is not in the trail: {error}");
        }
    }
}

fn settings(shared: &Shared) -> Result<&Http, Refusal> {
    let text = "this service has no accounts";
    shared.http.as_ref().ok_or_else(|| refusal(StatusCode::NOT_FOUND, "unknown", text))
}

fn own(caller: &Caller) -> Result<(&Known, &[u8; 32]), Refusal> {
    let (known, key) =
        caller.account.as_ref().ok_or_else(|| refusal(StatusCode::UNAUTHORIZED, "unauthorized", "log in"))?;
    Ok((known, key))
}

fn audit(http: &Http, deed: Deed) -> Result<(), Refusal> {
    (http.audit)(deed).map_err(|error| {
        let text = format!("nobody could tell of it later, so it is not done: {error}");
        refusal(StatusCode::SERVICE_UNAVAILABLE, "not_audited", text)
    })
}

/// What was announced to the trail and then refused.
fn undone(http: &Http, deed: Deed, error: &AccountsError) -> Refusal {
    if let Err(lost) = (http.audit)(Deed { refused: Some(error.to_string()), ..deed }) {
        log::error!("audit: what was refused stands in the trail as done: {lost}");
    }
    match error {
        AccountsError::Refused(text) => refusal(StatusCode::CONFLICT, "refused", text),
        AccountsError::File { .. } => damaged(error),
    }
}

pub(super) fn damaged(error: &AccountsError) -> Refusal {
    log::error!("http: {error}");
    refusal(
        StatusCode::SERVICE_UNAVAILABLE,
        "accounts",
        "the accounts cannot be read or written; the station's log says why",
    )
}

/// The beginning of what somebody sent as a name.
fn brief(name: &str) -> String {
    name.chars().filter(|letter| !letter.is_control()).take(40).collect()
}
