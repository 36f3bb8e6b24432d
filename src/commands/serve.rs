//! The network service of `dsad run`: its listeners, accounts and certificate.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;

use crate::accounts::Accounts;
use crate::config::access::{Access, Door};
use crate::config::http::{HttpSettings, TlsSettings};
use crate::config::station::Station;
use crate::inspection::audit::Audit;
use crate::inspection::frame::CameraId;
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
    let listen = |door: &Option<Door>| door.as_ref().map(|door| door.listen);
    let http = bind("http", station.http.as_ref().map(|http| http.listen))?;
    let (tcp, modbus) = (bind("tcp", listen(&station.tcp))?, bind("modbus", listen(&station.modbus))?);
    if http.is_none() && tcp.is_none() && modbus.is_none() {
        return Ok(None);
    }
    let cameras: Vec<CameraId> = station.cameras.iter().map(|camera| CameraId(camera.name.as_str().into())).collect();
    let make = || {
        let mut service = Service::new(http, tcp)?;
        if let Some(door) = &station.tcp {
            service = service.tcp_access(door.access.clone());
        }
        if let Some((listener, door)) = modbus.zip(station.modbus.as_ref()) {
            service = service.modbus(listener, door.access.clone(), &cameras)?;
        }
        Ok((service.addresses()?, service.modbus_address()?, service))
    };
    let made = make().map_err(|error: std::io::Error| format!("{}: the service: {error}", file.display()))?;
    let ((http, tcp), modbus, mut service) = made;
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
    for (name, address, door) in [("tcp", tcp, &station.tcp), ("modbus", modbus, &station.modbus)] {
        let (Some(address), Some(Door { access: Access { allow, level }, .. })) = (address, door) else { continue };
        log::info!("{name}: listening on {address}");
        if !address.ip().is_loopback() {
            let allow: Vec<String> = allow.iter().map(ToString::to_string).collect();
            let allow = allow.join(", ");
            log::warn!(
                "{name}: {address} is open to the network, without a password: whoever connects from {allow} commands as {level}"
            );
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
