//! `dsad run` with a configuration that is refused, under systemd: it stays up and says why, in place of a loop of starts. No
//! camera is opened, no network loaded, no line driven. SIGHUP reads the configuration again; once it is in order the process
//! ends, and systemd starts it anew with the time that a start is given.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::problems::examine;
use crate::inspection::time::Clock;
use crate::inspection::trigger::{RefusalCode, Refused};
use crate::platform::{service_manager, signals};
use crate::service::metrics::Reading;
use crate::service::{Act, Read, Service};

/// Where the reasons are told when the configuration does not say it.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// How often signals are looked at, and the watchdog is fed.
const TICK: Duration = Duration::from_millis(100);
/// Longest text for `systemctl status`, characters.
const STATUS: usize = 400;

/// Stays up until a stop, or until the configuration is in order.
///
/// # Errors
/// The system refuses signal handlers or threads.
pub fn run(config: &Path, problems: Vec<String>, stop: &AtomicBool, clock: &dyn Clock) -> anyhow::Result<ExitCode> {
    let reload = signals::reload_flag()?;
    let told = Arc::new(Mutex::new(problems));
    let started_nanos = clock.wall_nanos();
    let read: Read = {
        let told = Arc::clone(&told);
        Arc::new(move || Reading { started_nanos, obstacles: obstacles(&lock(&told)), ..Reading::default() })
    };
    let (stop_service, stopped) = oneshot::channel();
    let service = match listen(config) {
        Ok((address, service)) => {
            log::warn!("safe mode: http://{address}/readyz lists the reasons");
            let act: Act = Arc::new(|_| Err(Refused::new(RefusalCode::NotReady, "the station is in safe mode")));
            let body = move || service.run(read, act, stopped);
            Some(thread::Builder::new().name("service".into()).spawn(body)?)
        }
        Err(error) => {
            log::error!("safe mode without HTTP: {error}");
            None
        }
    };
    service_manager::ready(&status(&lock(&told)));
    let code = loop {
        if stop.load(Ordering::Relaxed) {
            break ExitCode::SUCCESS;
        }
        if reload.swap(false, Ordering::Relaxed) {
            match examine(config) {
                Ok(_) => {
                    log::info!("safe mode: {} is in order now; ends, to be started anew", config.display());
                    break ExitCode::SUCCESS;
                }
                Err(problems) => {
                    log::error!("safe mode: still refused:\n{}", problems.join("\n"));
                    // First the page, then the word that it has changed.
                    let text = status(&problems);
                    *lock(&told) = problems;
                    service_manager::status(&text);
                }
            }
        }
        service_manager::alive();
        thread::sleep(TICK);
    };
    service_manager::stopping();
    drop(stop_service);
    if let Some(Ok(Err(error))) = service.map(thread::JoinHandle::join) {
        log::error!("service: {error}");
    }
    Ok(code)
}

/// What stands in the way of ready.
fn obstacles(problems: &[String]) -> Vec<String> {
    let first = "safe mode: the configuration is refused; mend it, then `systemctl reload dsad` (SIGHUP)".to_owned();
    [first].into_iter().chain(problems.iter().cloned()).collect()
}

/// One line for `systemctl status`.
fn status(problems: &[String]) -> String {
    let first: Vec<&str> = problems.first().map(String::as_str).unwrap_or_default().split_whitespace().collect();
    let more = match problems.len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let text: String = first.join(" ").chars().take(STATUS).collect();
    format!("safe mode, outputs off: {text}{more}")
}

/// A service for this machine alone, on the port of the configuration as far as it can be read, or on the usual one: accounts and
/// certificates are part of what may be wrong.
fn listen(config: &Path) -> std::io::Result<(SocketAddr, Service)> {
    let bind = |address: SocketAddr| TcpListener::bind(address);
    let listener = match configured(config).map(bind) {
        Some(Ok(listener)) => listener,
        Some(Err(_)) | None => bind(ADDRESS)?,
    };
    let address = listener.local_addr()?;
    Ok((address, Service::new(Some(listener), None)?))
}

/// Where `listen` of `[http]` is on this machine, whatever else is wrong with the file.
fn configured(config: &Path) -> Option<SocketAddr> {
    let table: toml::Table = fs::read_to_string(config).ok()?.parse().ok()?;
    let address: SocketAddr = table.get("http")?.get("listen")?.as_str()?.parse().ok()?;
    Some(if address.ip().is_loopback() { address } else { (Ipv4Addr::LOCALHOST, address.port()).into() })
}

fn lock(told: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_told() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("dsad.toml");
        for (text, address) in [
            ("[http]\nlisten = '127.0.0.1:9000'\n", Some("127.0.0.1:9000")),
            ("unknown = 1\n[http]\nlisten = '0.0.0.0:9000'\n", Some("127.0.0.1:9000")),
            ("[http]\nlisten = '192.168.0.7:81'\n", Some("127.0.0.1:81")),
            ("[http]\nlisten = 9\n", None),
            ("[http\n", None),
            ("", None),
        ] {
            fs::write(&file, text).expect("writes");
            assert_eq!(configured(&file), address.map(|address| address.parse().expect("address")), "{text}");
        }
    }

    #[test]
    fn the_status_is_one_short_line() {
        let problems = ["dsad.toml: unknown field\n  |\n3 | evnts\n".to_owned(), "b".into(), "c".into()];
        let text = status(&problems);
        assert_eq!(text, "safe mode, outputs off: dsad.toml: unknown field | 3 | evnts (and 2 more)");
        assert!(status(&["x".repeat(5000)]).len() < 500);
    }
}
