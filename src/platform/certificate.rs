//! What the station shows to who connects by TLS: a certificate of its own making, or files of the plant.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::private_file;
use crate::inspection::time::{Clock, rfc3339};

/// Years that a certificate of the station's own making holds: controllers are told of it by hand.
const YEARS: i32 = 5;
/// Days before its end at which the station makes another one.
const RENEW: u64 = 60;
const DAY: u64 = 86_400 * 1_000_000_000;

/// A certificate's file and that of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, then those between it and the root; PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// The certificate of the station's own making, made where there is none or where it ends soon; `listen` is where the service
/// listens.
///
/// # Errors
/// Files cannot be read or written.
pub fn own(state: &Path, listen: IpAddr, clock: &dyn Clock) -> Result<Files, String> {
    let folder = state.join("tls");
    let files = Files { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
    let there = files.certificate.exists() && files.key.exists();
    if there && !ends_within(&files.certificate, clock, RENEW)? {
        return Ok(files);
    }
    let failed = |what: &dyn std::fmt::Display| format!("{}: no certificate could be made: {what}", folder.display());
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let certificate =
        params(&names(listen), clock).and_then(|params| params.self_signed(&key)).map_err(|error| failed(&error))?;
    // The key first: without its certificate both are made again.
    for (path, text) in [(&files.key, key.serialize_pem()), (&files.certificate, certificate.pem())] {
        private_file::write(path, text.as_bytes()).map_err(|error| {
            format!("{}: cannot be written: {error}; give the station's user the folder", path.display())
        })?;
    }
    log::info!("{}: made for {}", files.certificate.display(), names(listen).join(", "));
    Ok(files)
}

/// What a listener needs to show a certificate.
///
/// # Errors
/// The files cannot be read, or do not belong together.
pub fn server(files: &Files, clock: &dyn Clock) -> Result<Arc<ServerConfig>, String> {
    let of = |path: &Path, error: &dyn std::fmt::Display| {
        format!(
            "{}: {error}; give a certificate and its key as PEM, or neither: the station makes its own",
            path.display()
        )
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| of(&files.certificate, &error))?;
    if chain.is_empty() {
        return Err(of(&files.certificate, &"holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| of(&files.key, &error))?;
    if ends_within(&files.certificate, clock, RENEW)? {
        log::warn!("{}: the certificate ends within {RENEW} days", files.certificate.display());
    }
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| of(&files.key, &error))?;
    Ok(Arc::new(config))
}

fn params(names: &[String], clock: &dyn Clock) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("dsad", String::as_str));
    params.distinguished_name.push(DnType::OrganizationName, "dsad, of the station's own making");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (year, month, day) = date(clock.wall_nanos());
    // A clock that was not set yet must not make one that holds only later.
    params.not_before = date_time_ymd(year.min(2025), 1, 1);
    // A leap day has no anniversary.
    params.not_after = date_time_ymd(year + YEARS, month, day.min(28));
    Ok(params)
}

fn date(nanos: u64) -> (i32, u8, u8) {
    let text = rfc3339(nanos);
    let number = |range| text.get(range).and_then(|part: &str| part.parse().ok());
    (number(0..4).map_or(2025, i32::from), number(5..7).unwrap_or(1) as u8, number(8..10).unwrap_or(1) as u8)
}

/// Names and addresses under which the station may be called.
fn names(listen: IpAddr) -> Vec<String> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_name =
        |name: &&str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c));
    let host: Option<String> = Some(host.trim()).filter(is_name).map(str::to_owned);
    let mut addresses = BTreeSet::from([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    if listen.is_unspecified() {
        addresses.extend(here());
    } else {
        addresses.insert(listen);
    }
    let names = host.into_iter().chain(["localhost".to_owned()]);
    names.chain(addresses.iter().map(ToString::to_string)).collect()
}

/// The addresses of this machine, as the kernel lists them.
fn here() -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (v4, v6) = (read("/proc/net/fib_trie"), read("/proc/net/if_inet6"));
    let mut found: Vec<IpAddr> = Vec::new();
    let mut last = None;
    for line in v4.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last.map(IpAddr::V4));
        }
    }
    let v6 = v6.lines().filter_map(|line| u128::from_str_radix(line.split_whitespace().next()?, 16).ok());
    found.extend(v6.map(|bits| IpAddr::V6(bits.into())));
    found
}

/// Whether the first certificate of a file ends within so many days.
fn ends_within(file: &Path, clock: &dyn Clock, days: u64) -> Result<bool, String> {
    let certificate = CertificateDer::from_pem_file(file)
        .map_err(|error| format!("{}: {error}; take it away: the station makes another one", file.display()))?;
    let end = end(&certificate).ok_or_else(|| format!("{}: has no end", file.display()))?;
    // Both sort as they follow each other.
    Ok(end <= rfc3339(clock.wall_nanos() + days * DAY).replace(['-', ':', 'T'], ""))
}

/// The end of a certificate, `YYYYMMDDhhmmss`: the second of the two times that follow each other in it.
fn end(der: &[u8]) -> Option<String> {
    let time = |at: usize| {
        let (tag, length) = (*der.get(at)?, usize::from(*der.get(at + 1)?));
        let text = std::str::from_utf8(der.get(at + 2..at + 2 + length)?).ok()?.strip_suffix('Z')?;
        let digits = text.bytes().all(|c| c.is_ascii_digit());
        match (tag, length) {
            // Two digits of the year: RFC 5280 says which century.
            (0x17, 13) if digits => Some(format!("{}{text}", if text < "50" { "20" } else { "19" })),
            (0x18, 15) if digits => Some(text.to_owned()),
            _ => None,
        }
    };
    (0..der.len()).find_map(|at| {
        time(at)?;
        time(at + 2 + usize::from(der[at + 1]))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::inspection::time::Timestamp;

    /// A clock that was set by hand.
    struct Wall(u64);

    impl Clock for Wall {
        fn now(&self) -> Timestamp {
            Timestamp(0)
        }

        fn wall_nanos(&self) -> u64 {
            self.0
        }
    }

    fn day(days: u64) -> Wall {
        Wall(days * DAY)
    }

    #[test]
    fn a_certificate_is_kept_until_it_ends_soon() {
        let home = tempfile::tempdir().expect("directory");
        // 2026-03-01.
        let (start, listen) = (20_513, IpAddr::from([192, 168, 7, 9]));
        let files = own(home.path(), listen, &day(start)).expect("makes");
        let mode = fs::metadata(&files.key).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let made = fs::read(&files.certificate).expect("reads");
        let der = CertificateDer::from_pem_file(&files.certificate).expect("parses");
        assert_eq!(end(&der).as_deref(), Some("20310301000000"));
        assert!(der.windows(4).any(|bytes| bytes == [192, 168, 7, 9]), "names its address");
        let again = |days: u64| {
            own(home.path(), listen, &day(days)).expect("is there");
            fs::read(&files.certificate).expect("reads")
        };
        let last = start + 5 * 365 + 1;
        assert_eq!(again(last - RENEW - 1), made);
        assert_ne!(again(last - RENEW + 1), made);
        server(&files, &day(start)).expect("belong together");
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused_with_a_remedy() {
        let [one, other] = [(); 2].map(|()| tempfile::tempdir().expect("directory"));
        let clock = day(20_513);
        let [one, other] =
            [&one, &other].map(|home| own(home.path(), Ipv4Addr::LOCALHOST.into(), &clock).expect("makes"));
        let mixed = Files { certificate: one.certificate.clone(), key: other.key };
        let none = Files { certificate: one.key.clone(), key: one.key };
        for files in [mixed, none] {
            let error = server(&files, &clock).expect_err("refused");
            assert!(error.contains("makes its own"), "{error}");
        }
    }

    #[test]
    fn the_machine_knows_its_own_addresses() {
        let names = names(Ipv4Addr::UNSPECIFIED.into());
        assert!(names.iter().any(|name| name == "127.0.0.1") && names.iter().any(|name| name == "localhost"));
        assert_eq!(date(951_782_400_000_000_000), (2000, 2, 29));
    }
}
