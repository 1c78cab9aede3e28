//! `[failover]`: from what was typed to what it means.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use crate::error::Mistake;
use crate::raw;
use crate::resolve::{HOUR, Result, apart, duration, required};
use crate::resolved::{Etcd, Failover, FailoverMode, VirtualAddress};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(200);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const DEFAULT_PREFIX: &str = "/nasd";
/// `IFNAMSIZ` without the zero at its end.
const INTERFACE_BYTES: usize = 15;

pub(crate) fn resolve(raw: Option<Spanned<raw::Failover>>, peers: usize, mount: &Path) -> Result<Failover> {
    let at = raw.as_ref().map_or(0..0, Spanned::span);
    let raw = raw.map(Spanned::into_inner).unwrap_or_default();
    let mode_at = raw.mode.as_ref().map_or_else(|| at.clone(), Spanned::span);
    let mode = raw.mode.map_or(FailoverMode::Manual, Spanned::into_inner);
    if mode != FailoverMode::Manual && peers == 0 {
        return Err(Mistake::new(
            mode_at,
            format!("mode = \"{mode}\" without a [[peer]]: there is nobody to take over"),
            "add the other node as [[peer]], or leave the mode out",
        ));
    }
    if mode == FailoverMode::Heartbeat && peers > 1 {
        return Err(Mistake::new(
            mode_at,
            "mode = \"heartbeat\" is for two nodes: of three, two can take over at the same time",
            "set mode = \"etcd\"",
        ));
    }
    let timeout = duration(raw.timeout, "timeout", DEFAULT_TIMEOUT, SHORTEST_TIMEOUT..=HOUR)?;
    let interval = duration(raw.interval, "interval", timeout / 10, SHORTEST_INTERVAL..=timeout / 3)?;
    let fence_at = raw.fence_exec.as_ref().map(Spanned::span);
    let fence_exec = program(raw.fence_exec, "fence_exec", mount)?;
    if let (Some(at), true) = (fence_at, mode != FailoverMode::Heartbeat) {
        return Err(Mistake::new(
            at,
            format!("fence_exec is for mode = \"heartbeat\", and the mode is \"{mode}\""),
            "leave it out, or set the mode",
        ));
    }
    let etcd = match (mode, raw.etcd) {
        (FailoverMode::Etcd, Some(etcd)) => Some(resolve_etcd(etcd, mount)?),
        (FailoverMode::Etcd, None) => {
            return Err(Mistake::new(
                mode_at,
                "mode = \"etcd\" without [failover.etcd]",
                "add [failover.etcd] with endpoints = [\"http://HOST:2379\"]",
            ));
        }
        (_, Some(etcd)) => {
            return Err(Mistake::new(
                etcd.span(),
                format!("there is [failover.etcd] and the mode is \"{mode}\""),
                "set mode = \"etcd\" in [failover], or leave it out",
            ));
        }
        (_, None) => None,
    };
    Ok(Failover {
        mode,
        timeout,
        interval,
        fence_exec,
        auto_failback: raw.auto_failback.unwrap_or(false),
        virtual_address: virtual_address(raw.virtual_address, raw.interface)?,
        on_role_change: program(raw.on_role_change, "on_role_change", mount)?,
        etcd,
    })
}

fn program(typed: raw::Text, key: &str, mount: &Path) -> Result<Option<PathBuf>> {
    typed.map(|typed| apart(&typed, key, mount)).transpose()
}

fn virtual_address(address: raw::Text, interface: raw::Text) -> Result<Option<VirtualAddress>> {
    let (address, interface) = match (address, interface) {
        (None, None) => return Ok(None),
        (Some(a), Some(i)) => (a, i),
        (Some(a), None) => {
            return Err(Mistake::new(
                a.span(),
                "virtual_address without an interface",
                "add interface = \"eth0\", or what `ip link` calls it",
            ));
        }
        (None, Some(i)) => {
            return Err(Mistake::new(
                i.span(),
                "interface without a virtual_address",
                "add virtual_address = \"192.0.2.10/24\"",
            ));
        }
    };
    let text = address.get_ref();
    let parsed = text.split_once('/').and_then(|(a, len)| {
        let a: IpAddr = a.parse().ok()?;
        let longest = if a.is_ipv4() { 32 } else { 128 };
        let len = len.parse::<u8>().ok().filter(|&n| n >= 1 && n <= longest)?;
        (!a.is_unspecified() && !a.is_loopback() && !a.is_multicast()).then_some((a, len))
    });
    let Some((ip, prefix_len)) = parsed else {
        return Err(Mistake::new(
            address.span(),
            format!("virtual_address = {text:?} is no address of a host with its network"),
            "write for example \"192.0.2.10/24\" or \"2001:db8::10/64\"",
        ));
    };
    let name = interface.get_ref();
    let good = !name.is_empty()
        && name.len() <= INTERFACE_BYTES
        && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
    if !good {
        return Err(Mistake::new(
            interface.span(),
            format!("interface = {name:?} can't be the name of a network interface"),
            "write what `ip link` calls it, for example \"eth0\"",
        ));
    }
    Ok(Some(VirtualAddress { address: ip, prefix_len, interface: name.clone() }))
}

fn resolve_etcd(raw: Spanned<raw::Etcd>, mount: &Path) -> Result<Etcd> {
    let at = raw.span();
    let raw = raw.into_inner();
    let endpoints = required(raw.endpoints, "endpoints", "[failover.etcd]", &at)?;
    let endpoints_at = endpoints.span();
    let endpoints = endpoints.into_inner();
    if endpoints.is_empty() {
        return Err(Mistake::new(
            endpoints_at,
            "endpoints is empty",
            "write for example [\"http://etcd-1:2379\"]",
        ));
    }
    let secure = endpoints[0].get_ref().starts_with("https://");
    for typed in &endpoints {
        let text = typed.get_ref();
        let scheme = if secure { "https://" } else { "http://" };
        if text.strip_prefix(scheme).is_none_or(|rest| !is_authority(rest)) {
            return Err(Mistake::new(
                typed.span(),
                format!("the endpoint {text:?} is not {scheme}HOST:PORT"),
                "write for example \"http://etcd-1:2379\", all with http or all with https",
            ));
        }
    }
    let endpoints = endpoints.into_iter().map(Spanned::into_inner).collect();
    let insecure = |key: &str, at: Range<usize>| {
        Mistake::new(
            at,
            format!("{key} is for https, and the endpoints are http"),
            "write https:// endpoints",
        )
    };
    let file = |typed: raw::Text, key: &str| -> Result<_> {
        let Some(typed) = typed else { return Ok(None) };
        if !secure {
            return Err(insecure(key, typed.span()));
        }
        apart(&typed, key, mount).map(Some)
    };
    let (ca, cert, key) = (file(raw.ca, "ca")?, file(raw.cert, "cert")?, file(raw.key, "key")?);
    let cert = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert, key)),
        _ => {
            return Err(Mistake::new(at, "[failover.etcd] has one of cert and key", "write both or none"));
        }
    };
    let user = match (raw.user, raw.password_file) {
        (None, None) => None,
        (Some(user), Some(file)) => Some((user.into_inner(), apart(&file, "password_file", mount)?)),
        _ => {
            return Err(Mistake::new(
                at,
                "[failover.etcd] has one of user and password_file",
                "write both or none",
            ));
        }
    };
    let prefix = match raw.prefix {
        None => DEFAULT_PREFIX.to_owned(),
        Some(typed) => {
            let text = typed.get_ref().trim_end_matches('/');
            if text.is_empty() || text.contains(char::is_control) {
                let what = format!("prefix = {:?} can't begin the name of a key", typed.get_ref());
                return Err(Mistake::new(typed.span(), what, "write for example \"/nasd\""));
            }
            text.to_owned()
        }
    };
    Ok(Etcd { endpoints, prefix, ca, cert, user })
}

/// HOST:PORT, roughly: the client finds out the rest.
fn is_authority(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', '@', ' ']) && port.parse::<u16>().is_ok()
    })
}
