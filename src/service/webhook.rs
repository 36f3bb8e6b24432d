//! The webhook: events and alarms from the outbox, each posted as JSON until the server says that it has it.
//!
//! An answer of 2xx takes a message out of the outbox. One of 400, 413 or 422 says that it will never be taken: it is given up, counted and told.
//! After any other answer, or none, it is tried again, with longer and longer waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ring::hmac;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::config::telling::WebhookSettings;
use crate::output::record::{Clerk, RecordHealth};
use crate::output::store::Row;
use crate::output::store::outbox::{Destination, Turn, Waiting};
use crate::output::store::read::Reader;

/// Messages that are read from the outbox together.
const READ: usize = 32;
/// How often the outbox is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Waits after a message that was not taken, the first and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Longest time that what is left may take when the station stops, in ticks.
const GRACE: u32 = 40;

/// What the webhook reports.
#[derive(Debug, Default)]
pub struct WebhookHealth {
    /// Messages that the server took.
    pub sent: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Messages that the server will never take.
    pub refused: AtomicU64,
    /// Whether the last attempt failed.
    pub failing: AtomicBool,
}

/// The webhook, not yet running.
pub struct Webhook {
    /// Where to.
    pub settings: WebhookSettings,
    /// What messages are signed with.
    pub secret: Option<Vec<u8>>,
    /// PEM of who signed the server's certificate, if not the authorities of the web.
    pub ca: Option<Vec<u8>>,
    /// The outbox.
    pub reader: Reader,
    /// Where acknowledgements go.
    pub clerk: Clerk,
    /// When the record is closed the webhook ends.
    pub record: Arc<RecordHealth>,
    /// What it reports.
    pub health: Arc<WebhookHealth>,
}

/// What came of a message.
enum Answer {
    Taken,
    Never(u16),
    Again(String),
}

impl Webhook {
    /// Works on the calling thread until the record is closed. `nap` sleeps.
    ///
    /// # Errors
    /// A certificate that is none.
    pub fn run(self, nap: impl Fn(Duration)) -> Result<(), String> {
        let worked = self.agent().map(|agent| self.work(&agent, nap));
        self.record.left();
        worked
    }

    /// What speaks to the server.
    ///
    /// # Errors
    /// A certificate that is none.
    pub fn agent(&self) -> Result<Agent, String> {
        let mut tls = TlsConfig::builder();
        if let Some(pem) = &self.ca {
            let certificate = Certificate::from_pem(pem).map_err(|error| format!("webhook.ca: {error}"))?;
            tls = tls.root_certs(RootCerts::new_with_certs(&[certificate.to_owned()]));
        }
        let config = Agent::config_builder()
            .timeout_global(Some(Duration::from_secs_f64(self.settings.timeout_s)))
            .http_status_as_error(false)
            // Whoever answers elsewhere did not take it.
            .max_redirects(0)
            .tls_config(tls.build());
        Ok(config.build().new_agent())
    }

    fn work(&self, agent: &Agent, nap: impl Fn(Duration)) {
        let mut told: Option<String> = None;
        let mut closing = 0;
        let mut turn = None;
        let (mut wait, mut read_at) = (RETRY.0, None);
        loop {
            let closed = self.record.is_closed();
            closing += u32::from(closed);
            let commits = self.record.commits();
            let rows = match (&mut turn, read_at == Some(commits)) {
                (_, true) => Ok(Vec::new()),
                (Some(turn), _) => Turn::next(turn, &self.reader, READ),
                (none, _) => Turn::begin(&self.reader, Destination::Webhook)
                    .and_then(|begun| none.insert(begun).next(&self.reader, READ)),
            };
            let rows = rows.unwrap_or_else(|error| {
                log::error!("webhook: the outbox cannot be read: {error}");
                Vec::new()
            });
            read_at = (rows.len() < READ).then_some(commits);
            let idle = rows.is_empty();
            let mut done = Vec::new();
            for Waiting { id, topic, body } in rows {
                match self.post(agent, &topic, &body) {
                    Answer::Taken => {
                        self.health.sent.fetch_add(1, Ordering::Relaxed);
                        done.push(id);
                        wait = RETRY.0;
                        told = None;
                        if self.health.failing.swap(false, Ordering::Relaxed) {
                            log::info!("webhook: messages are taken again");
                        }
                    }
                    Answer::Never(status) => {
                        self.health.refused.fetch_add(1, Ordering::Relaxed);
                        log::error!("webhook: the server answers {status} and will never take this message: {body}");
                        done.push(id);
                    }
                    Answer::Again(reason) => {
                        self.health.failed.fetch_add(1, Ordering::Relaxed);
                        self.health.failing.store(true, Ordering::Relaxed);
                        if told.as_ref() != Some(&reason) {
                            log::error!("webhook: {reason}; messages wait in the outbox and are tried again");
                        }
                        told = Some(reason);
                        // From the first that is not acknowledged on, in its order.
                        (turn, read_at) = (None, None);
                        break;
                    }
                }
            }
            if !done.is_empty() && self.clerk.wait_for(Row::Sent(done)).is_err() {
                return;
            }
            if closed && (idle || closing > GRACE || turn.is_none()) {
                return;
            }
            if turn.is_none() && told.is_some() {
                // A stop is not waited for.
                let ticks = wait.as_millis() / TICK.as_millis();
                (0..ticks).take_while(|_| !self.record.is_closed()).for_each(|_| nap(TICK));
                wait = (wait * 2).min(RETRY.1);
            } else if idle {
                nap(TICK);
            }
        }
    }

    fn post(&self, agent: &Agent, topic: &str, body: &str) -> Answer {
        let mut request =
            agent.post(&self.settings.url).header("Content-Type", "application/json").header("X-Dsad-Topic", topic);
        if let Some(secret) = &self.secret {
            let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body.as_bytes());
            let hex: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            request = request.header("X-Dsad-Signature", format!("sha256={hex}"));
        }
        match request.send(body) {
            Ok(answer) => match answer.status().as_u16() {
                200..=299 => Answer::Taken,
                // The message itself is what the server cannot take.
                status @ (400 | 413 | 422) => Answer::Never(status),
                status => Answer::Again(format!("the server answers {status}")),
            },
            Err(error) => Answer::Again(error.to_string()),
        }
    }
}
