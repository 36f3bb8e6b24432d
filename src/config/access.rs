//! Who may connect to protocols that know no passwords, and what they may command.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::inspection::account::Level;

/// An address, or all that begin like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// How many of its first bits count.
    bits: u8,
}

impl Network {
    /// The network of a text as `192.168.0.0/24`, or `192.168.0.7` for one address.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no address, as 192.168.0.7, and no network, as 192.168.0.0/24");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let network = Self { address, bits: bits.unwrap_or(most) };
        if network.bits > most {
            return Err(format!("'{text}': at most /{most}"));
        }
        if network.first() != address {
            return Err(format!("'{text}' has bits set beyond /{}; write {}/{0}", network.bits, network.first()));
        }
        Ok(network)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && Self { address, bits: self.bits }.first() == self.address
    }

    /// The address with the bits that do not count as zeros.
    fn first(&self) -> IpAddr {
        let cut = |value: u128, width: u32| {
            let rest = width - u32::from(self.bits).min(width);
            if rest == 128 { 0 } else { value >> rest << rest }
        };
        match self.address {
            IpAddr::V4(address) => IpAddr::V4((cut(u128::from(address.to_bits()), 32) as u32).into()),
            IpAddr::V6(address) => IpAddr::V6(cut(address.to_bits(), 128).into()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Who may connect, and what they may command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// From where; from this machine in any case.
    pub allow: Vec<Network>,
    /// What may be commanded.
    pub level: Level,
}

impl Default for Access {
    fn default() -> Self {
        Self { allow: Vec::new(), level: Level::Operator }
    }
}

impl Access {
    /// Whether somebody may connect.
    pub fn admits(&self, peer: IpAddr) -> bool {
        peer.to_canonical().is_loopback() || self.allow.iter().any(|network| network.contains(peer))
    }
}

/// Where a protocol listens, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// The address.
    pub listen: SocketAddr,
    /// Who may come in.
    pub access: Access,
}

/// The door of a section, with what is wrong by key.
pub(super) fn door(
    section: &str,
    listen: Option<SocketAddr>,
    allow: Option<&[String]>,
    level: Level,
    problem: &mut impl FnMut(String, String),
) -> Option<Door> {
    let listen = listen?;
    let key = format!("{section}.allow");
    let mut networks = Vec::new();
    for text in allow.unwrap_or_default() {
        match Network::parse(text) {
            Ok(network) => networks.push(network),
            Err(message) => problem(key.clone(), message),
        }
    }
    if allow.is_none() && !listen.ip().to_canonical().is_loopback() {
        let message = format!(
            "is left out, and {listen} is open to the network, without a password; list who may connect, as \
             allow = [\"192.168.0.0/24\"], or listen on 127.0.0.1"
        );
        problem(key, message);
    }
    Some(Door { listen, access: Access { allow: networks, level } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_hold_what_begins_alike() {
        for (text, inside, outside) in [
            ("192.168.0.0/24", "192.168.0.255", "192.168.1.0"),
            ("10.0.0.7", "10.0.0.7", "10.0.0.8"),
            ("0.0.0.0/0", "8.8.8.8", "::2"),
            ("fd00::/8", "fd12::9", "fe00::"),
            ("192.168.0.0/24", "::ffff:192.168.0.9", "::ffff:192.168.1.9"),
            ("::/0", "2001:db8::1", "1.2.3.4"),
        ] {
            let network = Network::parse(text).expect(text);
            assert!(network.contains(inside.parse().expect("address")), "{text} {inside}");
            assert!(!network.contains(outside.parse().expect("address")), "{text} {outside}");
        }
        for (text, word) in [("192.168.0.7/24", "write 192.168.0.0/24"), ("here", "no address"), ("1.2.3.4/33", "/32")]
        {
            let error = Network::parse(text).expect_err(text);
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_address_of_the_network_needs_a_list() {
        let door = |listen: &str, allow: Option<&[String]>| {
            let mut keys = Vec::new();
            let listen = Some(listen.parse().expect("address"));
            let door = door("tcp", listen, allow, Level::Operator, &mut |key, message| keys.push((key, message)));
            (door.expect("a door"), keys)
        };
        let (near, none) = door("127.0.0.1:1", None);
        assert!(none.is_empty() && near.access.admits("::1".parse().expect("address")));
        assert!(!near.access.admits("192.168.0.7".parse().expect("address")));
        let (_, problems) = door("0.0.0.0:1", None);
        assert!(problems.len() == 1 && problems[0].0 == "tcp.allow", "{problems:?}");
        let (far, none) = door("0.0.0.0:1", Some(&["192.168.0.0/24".to_owned()]));
        assert!(none.is_empty() && far.access.admits("192.168.0.7".parse().expect("address")));
        let (_, problems) = door("0.0.0.0:1", Some(&["x".to_owned(), "10.0.0.0/8".to_owned()]));
        assert_eq!(problems.len(), 1);
    }
}
