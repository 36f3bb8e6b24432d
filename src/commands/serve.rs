//! The network service of `dsad run`: its listeners, accounts and certificate.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;

use crate::accounts::Accounts;
use crate::config::http::{HttpSettings, TlsSettings};
use crate::config::station::Station;
use crate::inspection::audit::Audit;
use crate::inspection::time::Clock;
use crate::platform::certificate::{self, Files};
use crate::service::{Draw, Http, Recent, Service};

/// What the service tells, and where it writes what is done to it.
pub struct Told {
    /// The audit trail.
    pub audit: Audit,
    /// The last pictures.
    pub picture: Option<Draw>,
    /// The last events.
    pub recent: Option<Recent>,
}

/// The service on its addresses, if the station has any.
///
/// # Errors
/// An address cannot be used; accounts or certificate cannot be read or made.
pub fn listen(station: &Station, file: &Path, clock: &Arc<dyn Clock>, told: Told) -> Result<Option<Service>, String> {
    let bind = |key: &str, address: Option<SocketAddr>| {
        let Some(address) = address else { return Ok(None) };
        TcpListener::bind(address).map(Some).map_err(|error| {
            format!(
                "{}: {key}.listen: {address} cannot be used: {error}; take a free port of an address of this machine \
                 (`ss -ltn` lists the ports in use), or leave [{key}] out",
                file.display()
            )
        })
    };
    let http = bind("http", station.http.as_ref().map(|http| http.listen))?;
    let tcp = bind("tcp", station.tcp)?;
    if http.is_none() && tcp.is_none() {
        return Ok(None);
    }
    let service = Service::new(http, tcp).and_then(|service| Ok((service.addresses()?, service)));
    let ((http, tcp), mut service) = service.map_err(|error| format!("{}: the service: {error}", file.display()))?;
    if let (Some(address), Some(settings)) = (http, &station.http) {
        let accounts = Accounts::open(&station.state).map_err(|error| error.to_string())?;
        if let Some(told) = accounts.first().map_err(|error| error.to_string())? {
            log::warn!(
                "http: '{}' has the first password of 'admin', which may do nothing but change it",
                told.display()
            );
        }
        let tls = tls(station, settings, clock.as_ref())?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        log::info!("http: listening on {address}");
        log::info!("http: {scheme}://{address}/ shows the station");
        service = service.with_accounts(Http {
            station: station.name.clone(),
            accounts: Arc::new(accounts),
            audit: told.audit,
            clock: Arc::clone(clock),
            tls,
            open_reads: settings.open_reads,
            picture: told.picture,
            recent: told.recent,
        });
    }
    if let Some(address) = tcp {
        log::info!("tcp: listening on {address}");
        if !address.ip().is_loopback() {
            log::warn!("tcp: {address} is open to the network, without a password: whoever reaches it commands");
        }
    }
    Ok(Some(service))
}

fn tls(station: &Station, settings: &HttpSettings, clock: &dyn Clock) -> Result<Option<Arc<ServerConfig>>, String> {
    let files = match &settings.tls {
        None => return Ok(None),
        Some(TlsSettings::OwnMaking) => certificate::own(&station.state, settings.listen.ip(), clock)?,
        Some(TlsSettings::Files { certificate, key }) => Files { certificate: certificate.clone(), key: key.clone() },
    };
    certificate::server(&files, clock).map(Some)
}
