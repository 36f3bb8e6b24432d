//! Who is told of verdicts over the network, whether he answers or not: the MQTT broker and the webhook.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::inspection::account::Level;

/// `[mqtt]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MqttFile {
    /// `mqtt://HOST:1883`, `mqtts://HOST:8883`, or `unix:///run/mosquitto/mosquitto.sock`.
    pub broker: String,
    /// First part of all topics.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// Identity at the broker; absent is `dsad-` and the station's name.
    pub client_id: Option<String>,
    /// Account at the broker.
    pub username: Option<String>,
    /// File with its password, one line.
    pub password_file: Option<PathBuf>,
    /// PEM of who signed the broker's certificate, for `mqtts`.
    pub ca: Option<PathBuf>,
    /// PEM of a certificate of this station's own, where the broker asks for one.
    pub certificate: Option<PathBuf>,
    /// PEM of its key.
    pub key: Option<PathBuf>,
    /// Seconds of silence after which the broker says that this station is offline, and half as many again.
    #[serde(default = "default_keep_alive")]
    pub keep_alive_s: u16,
    /// What may be commanded over the broker; absent is nothing. The broker says who may publish there.
    pub level: Option<Level>,
}

fn default_prefix() -> String {
    "dsad".into()
}

fn default_keep_alive() -> u16 {
    15
}

/// `[webhook]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookFile {
    /// Where events are posted: `https://...` or `http://...`.
    pub url: String,
    /// Whether passes are told, too.
    #[serde(default)]
    pub passes: bool,
    /// File with the secret that every message is signed with, one line.
    pub secret_file: Option<PathBuf>,
    /// PEM of who signed the server's certificate; absent are the authorities of the web.
    pub ca: Option<PathBuf>,
    /// Seconds that an answer may take.
    #[serde(default = "default_timeout")]
    pub timeout_s: f64,
}

fn default_timeout() -> f64 {
    5.0
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerAddress {
    /// Host and port, and whether by TLS.
    Tcp(String, u16, bool),
    /// A socket of this machine.
    Unix(PathBuf),
}

/// The broker, and how it is spoken to. What files say is read when the station starts.
#[derive(Debug, Clone, PartialEq)]
pub struct MqttSettings {
    /// Where it is.
    pub address: BrokerAddress,
    /// Topics begin with this: `dsad/line/station/`.
    pub topics: String,
    /// Identity at the broker.
    pub client_id: String,
    /// Account at the broker.
    pub username: Option<String>,
    /// File with its password.
    pub password_file: Option<PathBuf>,
    /// Who signed the broker's certificate.
    pub ca: Option<PathBuf>,
    /// A certificate of the station's own and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Seconds between signs of life.
    pub keep_alive_s: u16,
    /// What may be commanded.
    pub level: Option<Level>,
}

/// The webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookSettings {
    /// Where to.
    pub url: String,
    /// Whether passes are told, too.
    pub passes: bool,
    /// File with the secret.
    pub secret_file: Option<PathBuf>,
    /// Who signed the server's certificate.
    pub ca: Option<PathBuf>,
    /// Seconds that an answer may take.
    pub timeout_s: f64,
}

/// What is wrong with a key: the key, and the words.
type Wrong = (&'static str, String);

impl MqttFile {
    /// What it means, relative to a folder, for a line and a station.
    ///
    /// # Errors
    /// An address or a name that a broker cannot have.
    pub fn resolve(&self, base: &Path, line: &str, station: &str) -> Result<MqttSettings, Wrong> {
        let address = broker(&self.broker).map_err(|message| ("mqtt.broker", message))?;
        let secret = matches!(address, BrokerAddress::Tcp(.., true));
        if !secret && (self.ca.is_some() || self.certificate.is_some()) {
            return Err((
                "mqtt.broker",
                format!("'{}' has no certificates; write mqtts:// or leave `ca` out", self.broker),
            ));
        }
        if secret && self.ca.is_none() {
            return Err(("mqtt.ca", "is missing; name the PEM file of who signed the broker's certificate".into()));
        }
        let open = matches!(&address, BrokerAddress::Tcp(host, _, false) if !["localhost", "127.0.0.1", "::1"].contains(&host.as_str()));
        if open && self.password_file.is_some() {
            return Err((
                "mqtt.password_file",
                "would go over the network in the clear; write mqtts:// and name `ca`".into(),
            ));
        }
        if self.password_file.is_some() && self.username.is_none() {
            return Err(("mqtt.username", "is missing beside password_file".into()));
        }
        if !(1..=3_600).contains(&self.keep_alive_s) {
            return Err(("mqtt.keep_alive_s", format!("{}: must be 1 to 3600", self.keep_alive_s)));
        }
        let identity = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Some((base.join(certificate), base.join(key))),
            (None, None) => None,
            _ => return Err(("mqtt.key", "certificate and key go together".into())),
        };
        let names = [("mqtt.prefix", self.prefix.as_str()), ("line", line), ("station", station)];
        for (key, name) in names {
            // `+` and `#` stand for topics of others.
            if name.contains(['+', '#', '/']) || name.chars().any(char::is_control) {
                return Err((key, format!("'{name}' stands in MQTT topics: no '+', '#', '/' or control characters")));
            }
        }
        let line = if line.is_empty() { "line" } else { line };
        Ok(MqttSettings {
            address,
            topics: format!("{}/{line}/{station}/", self.prefix),
            client_id: self.client_id.clone().unwrap_or_else(|| format!("dsad-{station}")),
            username: self.username.clone(),
            password_file: self.password_file.as_ref().map(|file| base.join(file)),
            ca: self.ca.as_ref().map(|file| base.join(file)),
            identity,
            keep_alive_s: self.keep_alive_s,
            level: self.level,
        })
    }
}

fn broker(text: &str) -> Result<BrokerAddress, String> {
    let remedy = "write mqtt://HOST:1883, mqtts://HOST:8883 or unix:///PATH";
    let wrong = || format!("'{text}' is no broker; {remedy}");
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let secret = match scheme {
        "unix" if rest.starts_with('/') => return Ok(BrokerAddress::Unix(rest.into())),
        "mqtt" => false,
        "mqtts" => true,
        _ => return Err(wrong()),
    };
    let (host, port) = match rest.rsplit_once(':') {
        // An address of IPv6 has colons of its own, and brackets.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (rest, if secret { 8883 } else { 1883 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains('/') {
        return Err(wrong());
    }
    Ok(BrokerAddress::Tcp(host.into(), port, secret))
}

impl WebhookFile {
    /// What it means, relative to a folder.
    ///
    /// # Errors
    /// An address that is none, or a time that makes no sense.
    pub fn resolve(&self, base: &Path) -> Result<WebhookSettings, Wrong> {
        if !["http://", "https://"].iter().any(|scheme| self.url.len() > scheme.len() && self.url.starts_with(scheme)) {
            return Err(("webhook.url", format!("'{}' is no address; write https://HOST/PATH", self.url)));
        }
        if !(0.1..=60.0).contains(&self.timeout_s) {
            return Err(("webhook.timeout_s", format!("{}: must be 0.1 to 60", self.timeout_s)));
        }
        Ok(WebhookSettings {
            url: self.url.clone(),
            passes: self.passes,
            secret_file: self.secret_file.as_ref().map(|file| base.join(file)),
            ca: self.ca.as_ref().map(|file| base.join(file)),
            timeout_s: self.timeout_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_told_apart() {
        let tcp = |host: &str, port, secret| Ok(BrokerAddress::Tcp(host.into(), port, secret));
        assert_eq!(broker("mqtt://plant"), tcp("plant", 1883, false));
        assert_eq!(broker("mqtts://10.0.0.7:8884"), tcp("10.0.0.7", 8884, true));
        assert_eq!(broker("mqtt://[::1]:18830"), tcp("::1", 18830, false));
        assert_eq!(broker("mqtt://[::1]"), tcp("::1", 1883, false));
        assert_eq!(broker("unix:///run/m.sock"), Ok(BrokerAddress::Unix("/run/m.sock".into())));
        for wrong in ["plant", "http://plant", "mqtt://", "mqtt://plant:x", "unix://relative"] {
            assert!(broker(wrong).is_err_and(|text| text.contains(wrong) && text.contains("mqtt://HOST")), "{wrong}");
        }
    }
}
