//! The HTTP service of a station: where it listens, and what it shows to whom.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::file::HttpFile;

/// The HTTP service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether state and counters are told without an account.
    pub open_reads: bool,
    /// How it is encrypted; absent is not at all.
    pub tls: Option<TlsSettings>,
}

/// Which certificate is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSettings {
    /// One that the station makes.
    OwnMaking,
    /// Files of the plant, PEM.
    Files {
        /// The certificate, then those between it and the root.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// `[http]` as it is meant, with the paths of files relative to `base`; and what is wrong, by key.
pub(super) fn resolve(file: &HttpFile, base: &Path) -> (Option<HttpSettings>, Vec<(&'static str, String)>) {
    let mut problems = Vec::new();
    let listen: Option<SocketAddr> = file.listen.parse().ok();
    if listen.is_none() {
        let remedy = "is no address with a port, such as 127.0.0.1:8080 or, for the whole network, 0.0.0.0:8080";
        problems.push(("http.listen", format!("'{}' {remedy}", file.listen)));
    }
    let files = match (&file.certificate, &file.key) {
        (Some(certificate), Some(key)) => {
            Some(TlsSettings::Files { certificate: base.join(certificate), key: base.join(key) })
        }
        (None, None) => None,
        (Some(_), None) => {
            problems.push(("http.key", "is missing: a certificate needs its private key".into()));
            None
        }
        (None, Some(_)) => {
            problems.push(("http.certificate", "is missing: a key needs its certificate".into()));
            None
        }
    };
    let far = listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback());
    if file.tls == Some(false) && far {
        let text =
            "false: passwords would cross the network for everybody to read; leave it out, or listen on 127.0.0.1";
        problems.push(("http.tls", text.into()));
    }
    if file.tls == Some(false) && files.is_some() {
        problems.push(("http.certificate", "is not used with tls = false; leave one of them out".into()));
    }
    let tls = file.tls.unwrap_or(far || files.is_some()).then(|| files.unwrap_or(TlsSettings::OwnMaking));
    let settings = listen.map(|listen| HttpSettings { listen, open_reads: file.open_reads, tls });
    (settings, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_machine_in_the_clear() {
        let files = TlsSettings::Files { certificate: "/s/c.pem".into(), key: "/s/k.pem".into() };
        let own = TlsSettings::OwnMaking;
        for (text, expected) in [
            ("listen = '127.0.0.1:80'", Ok(None)),
            ("listen = '[::1]:80'", Ok(None)),
            ("listen = '127.0.0.1:80'\ntls = true", Ok(Some(&own))),
            ("listen = '0.0.0.0:80'", Ok(Some(&own))),
            ("listen = '[::ffff:127.0.0.1]:80'", Ok(None)),
            ("listen = '192.168.0.7:80'\ncertificate = 'c.pem'\nkey = '/s/k.pem'", Ok(Some(&files))),
            ("listen = '127.0.0.1:80'\ncertificate = 'c.pem'\nkey = 'k.pem'", Ok(Some(&files))),
            ("listen = '[::]:80'\ntls = false", Err("http.tls")),
            ("listen = '127.0.0.1:80'\ntls = false\ncertificate = 'c.pem'\nkey = 'k.pem'", Err("http.certificate")),
            ("listen = '127.0.0.1:80'\ncertificate = 'c.pem'", Err("http.key")),
            ("listen = '127.0.0.1:80'\nkey = 'k.pem'", Err("http.certificate")),
            ("listen = 'localhost'", Err("http.listen")),
        ] {
            let file: HttpFile = toml::from_str(text).expect("parses");
            let (settings, problems) = resolve(&file, Path::new("/s"));
            match expected {
                Ok(tls) => {
                    assert!(problems.is_empty(), "{text}: {problems:?}");
                    assert_eq!(settings.expect("valid").tls.as_ref(), tls, "{text}");
                }
                Err(key) => assert_eq!(problems.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key], "{text}"),
            }
        }
    }
}
