//! Who is told of verdicts over the network, put together: secrets, workers, and what they report.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context;

use super::record::Kept;
use crate::config::station::Station;
use crate::daemon::pipeline::Worker;
use crate::inspection::time::Clock;
use crate::output::store::outbox::{Destination, Outlet};
use crate::output::store::read::Reader;
use crate::service::metrics::Family;
use crate::service::mqtt::{Mqtt, MqttHealth, Secrets};
use crate::service::webhook::{Webhook, WebhookHealth};
use crate::service::{Add, Desk, alarms};

/// What those who are told need: workers, and what they report.
#[derive(Default)]
pub struct Telling {
    /// The workers.
    pub workers: Vec<Worker>,
    /// What they report.
    pub add: Vec<Add>,
}

/// The destinations of a station.
pub fn outlets(station: &Station) -> Vec<Outlet> {
    let mqtt = station.mqtt.as_ref().map(|_| Outlet { to: Destination::Mqtt, passes: true });
    let webhook = station.webhook.as_ref().map(|hook| Outlet { to: Destination::Webhook, passes: hook.passes });
    mqtt.into_iter().chain(webhook).collect()
}

/// Those who tell of what is `kept`.
///
/// # Errors
/// A file with a secret cannot be read, or the database cannot.
pub fn open(station: &Station, kept: &Kept, desk: &Arc<Desk>, clock: &Arc<dyn Clock>) -> anyhow::Result<Telling> {
    let mut telling = Telling::default();
    let reader = || Reader::open(&station.state).with_context(|| station.state.display().to_string());
    if let Some(settings) = station.mqtt.clone() {
        let identity = settings.identity.as_ref().map(|(certificate, key)| {
            Ok::<_, anyhow::Error>((read("mqtt.certificate", certificate)?, read("mqtt.key", key)?))
        });
        let secrets = Secrets {
            password: settings.password_file.as_deref().map(|file| secret("mqtt.password_file", file)).transpose()?,
            ca: settings.ca.as_deref().map(|file| read("mqtt.ca", file)).transpose()?.unwrap_or_default(),
            identity: identity.transpose()?,
        };
        let health: Arc<MqttHealth> = Arc::default();
        let mqtt = Mqtt {
            settings,
            secrets,
            reader: reader()?,
            clerk: kept.clerk.clone(),
            record: Arc::clone(&kept.health),
            desk: Arc::clone(desk),
            health: Arc::clone(&health),
        };
        kept.health.listens();
        telling.workers.push(worker("mqtt", move || mqtt.run()));
        telling.add.push(Box::new(move |reading| {
            reading.families.extend([
                Family::gauge("mqtt_connected", "1 while the broker is there.", flag(&health.connected)),
                Family::counter("mqtt_losses", "Connections that broke or never came.", get(&health.losses)),
                Family::counter("mqtt_sent", "Messages that the broker acknowledged.", get(&health.sent)),
                Family::counter("mqtt_commands", "Commands that came from the broker.", get(&health.commands)),
            ]);
        }));
    }
    if let Some(settings) = station.webhook.clone() {
        let secret = settings.secret_file.as_deref().map(|file| secret("webhook.secret_file", file)).transpose()?;
        let ca = settings.ca.as_deref().map(|file| read("webhook.ca", file)).transpose()?;
        let health: Arc<WebhookHealth> = Arc::default();
        let webhook = Webhook {
            settings,
            secret: secret.map(String::into_bytes),
            ca,
            reader: reader()?,
            clerk: kept.clerk.clone(),
            record: Arc::clone(&kept.health),
            health: Arc::clone(&health),
        };
        webhook.agent().map_err(anyhow::Error::msg)?;
        kept.health.listens();
        telling.workers.push(worker("webhook", move || webhook.run(std::thread::sleep)));
        telling.add.push(Box::new(move |reading| {
            reading.families.extend([
                Family::counter("webhook_sent", "Messages that the server took.", get(&health.sent)),
                Family::counter("webhook_failed", "Attempts that failed and were tried again.", get(&health.failed)),
                Family::counter("webhook_refused", "Messages that the server will never take.", get(&health.refused)),
                Family::gauge("webhook_failing", "1 while the last attempt failed.", flag(&health.failing)),
            ]);
        }));
    }
    if !telling.workers.is_empty() {
        let (desk, clerk, record) = (Arc::clone(desk), kept.clerk.clone(), Arc::clone(&kept.health));
        let clock = Arc::clone(clock);
        telling.workers.push((
            "alarms",
            Box::new(move || alarms::run(&desk, &clerk, &record, clock.as_ref(), std::thread::sleep)),
        ));
    }
    Ok(telling)
}

/// A worker that says why it ended, if it should not have.
fn worker<E: Display>(name: &'static str, run: impl FnOnce() -> Result<(), E> + Send + 'static) -> Worker {
    let told = move || {
        if let Err(error) = run() {
            log::error!("{name}: {error}");
        }
    };
    (name, Box::new(told))
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn flag(flag: &AtomicBool) -> u64 {
    u64::from(flag.load(Ordering::Relaxed))
}

fn read(key: &str, file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("{key}: {} cannot be read", file.display()))
}

/// A secret of one line.
fn secret(key: &str, file: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(read(key, file)?).with_context(|| format!("{key}: {}: is no text", file.display()))?;
    let secret = text.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!secret.is_empty(), "{key}: {} is empty; write the secret into it, one line", file.display());
    Ok(secret.to_owned())
}
