//! Neighbour discovery for IPv6 over Ethernet: RFC 4861, with the question of RFC 4862 (5.4.2).

use std::net::Ipv6Addr;

use socket2::SockFilter;

use super::wire::{HEADER, Mac, frame};

pub(super) const ETHERTYPE: u16 = 0x86dd;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;
/// What has this came from this network: a router would have lowered it.
const HOP_LIMIT: u8 = 255;
const IP_HEADER: usize = 40;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// "Forget what you knew"; neither a router nor an answer.
const OVERRIDE: u8 = 0x20;
const TARGET_MAC: u8 = 2;
/// Type, code, checksum, flags, and the address in question.
const MESSAGE: usize = 24;

/// "Who has it?", from nobody, so that nobody's cache changes by it.
pub(super) fn solicitation(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = ip.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], &ip.octets()[..]].concat();
    packet(mac, Ipv6Addr::UNSPECIFIED, group, message)
}

/// "It is at `mac`", to everybody, unasked.
pub(super) fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let message =
        [&[ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0], &ip.octets()[..], &[TARGET_MAC, 1], &mac.0].concat();
    packet(mac, ip, ALL_NODES, message)
}

/// Who says in this frame that it has `ip`.
pub(super) fn holder(frame: &[u8], ip: Ipv6Addr) -> Option<Mac> {
    let packet = frame.get(HEADER..)?;
    let header: &[u8; IP_HEADER] = packet.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // Ethernet pads what is short.
    let message = packet.get(IP_HEADER..IP_HEADER + length)?;
    let from: [u8; 16] = *header[8..].first_chunk()?;
    let to: [u8; 16] = *header[24..].first_chunk()?;
    let is_advertisement = frame[12..HEADER] == ETHERTYPE.to_be_bytes()
        && header[0] >> 4 == 6
        && header[6..8] == [ICMPV6, HOP_LIMIT]
        && message.len() >= MESSAGE
        && message[..2] == [ADVERTISEMENT, 0]
        && checksum(from.into(), to.into(), message) == 0;
    if !is_advertisement || message[8..MESSAGE] != ip.octets() {
        return None;
    }
    // Without the option, which an answer to all nodes must have, the frame's sender says who it is.
    target_mac(&message[MESSAGE..]).or_else(|| Some(Mac(*frame[6..].first_chunk()?)))
}

/// Options: a type, a length in units of 8 bytes, and the rest.
fn target_mac(mut options: &[u8]) -> Option<Mac> {
    while let [kind, units, ..] = *options {
        if units == 0 {
            return None;
        }
        let (option, rest) = options.split_at_checked(usize::from(units) * 8)?;
        if kind == TARGET_MAC {
            return Some(Mac(*option[2..].first_chunk()?));
        }
        options = rest;
    }
    None
}

/// The kernel drops all but advertisements: of everything that a busy host gets in IPv6, the answer would be lost.
pub(super) fn filter() -> [SockFilter; 6] {
    let load = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    [
        SockFilter::new(load, 0, 0, (HEADER + 6) as u32),
        SockFilter::new(equal, 0, 3, ICMPV6.into()),
        SockFilter::new(load, 0, 0, (HEADER + IP_HEADER) as u32),
        SockFilter::new(equal, 0, 1, ADVERTISEMENT.into()),
        SockFilter::new(end, 0, 0, u32::MAX),
        SockFilter::new(end, 0, 0, 0),
    ]
}

fn packet(mac: Mac, from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let sum = checksum(from, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let length = (message.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, length[0], length[1], ICMPV6, HOP_LIMIT];
    let payload = [&header[..], &from.octets(), &to.octets(), &message].concat();
    // RFC 2464, 7: a group's frames go to its last four bytes.
    let [.., a, b, c, d] = to.octets();
    frame(Mac([0x33, 0x33, a, b, c, d]), mac, ETHERTYPE, &payload)
}

/// RFC 4443, 2.3: over the pseudo-header, too. Zero over a message that holds its right checksum.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let all = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, ICMPV6], message].concat();
    let words = all.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x0a]);
    const IP: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);

    #[test]
    fn a_solicitation_comes_from_nobody() {
        // The checksum by hand, in words: the group ff02+0001+ff12+3456 = 2326b, length 0018, next header 003a, type
        // 8700, the address 2001+0db8+0012+3456 = 6221; the sum is 31bde, folded 1be1, its complement e41e.
        #[rustfmt::skip]
        let expected = [
            0x33, 0x33, 0xff, 0x12, 0x34, 0x56, 0x02, 0, 0, 0, 0, 0x0a, 0x86, 0xdd, // to the group, from us, IPv6
            0x60, 0, 0, 0, 0, 24, 58, 255,                                          // 24 bytes of ICMPv6
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,                         // from nobody
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0x56,       // to who listens for the address
            135, 0, 0xe4, 0x1e, 0, 0, 0, 0,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
        ];
        assert_eq!(solicitation(MAC, IP), expected);
        assert_eq!(holder(&solicitation(MAC, IP), IP), None);
    }

    #[rustfmt::skip]
    const ADVERTISED: [u8; 86] = [
        0x33, 0x33, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 0x0a, 0x86, 0xdd,
        0x60, 0, 0, 0, 0, 32, 58, 255,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
        0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        136, 0, 0x90, 0x53, 0x20, 0, 0, 0,                                           // override
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
        2, 1, 0x02, 0, 0, 0, 0, 0x0a,                                                // the target's MAC address
    ];

    #[test]
    fn an_advertisement_overrides() {
        // By hand: the address twice 6221+6221 = c442, the group ff02+0001 = ff03, 0020, 003a, 8800, flags 2000, the
        // option 0201+0200+0000+000a = 040b; the sum is 26faa, folded 6fac, its complement 9053.
        assert_eq!(advertisement(MAC, IP), ADVERTISED);
        assert_eq!(holder(&ADVERTISED, IP), Some(MAC));
    }

    #[test]
    fn an_answer_is_understood_and_nothing_else() {
        assert_eq!(holder(&ADVERTISED, ALL_NODES), None);
        assert_eq!(holder(&[&ADVERTISED[..], &[0; 4]].concat(), IP), Some(MAC), "padded");
        for n in 0..ADVERTISED.len() {
            assert_eq!(holder(&ADVERTISED[..n], IP), None, "cut off after {n}");
        }
        // Another type of frame, version, protocol, hop limit, type, code, checksum.
        for (place, byte) in [(12, 0x08), (14, 0x40), (20, 17), (21, 254), (54, 135), (55, 1), (56, 0)] {
            let mut answer = ADVERTISED;
            answer[place] = byte;
            assert_eq!(holder(&answer, IP), None, "byte {place}");
        }
    }

    #[test]
    fn options_may_be_foreign_missing_or_broken() {
        let mac = [2, 1, 2, 0, 0, 0, 0, 0x0b];
        let other = Some(Mac([2, 0, 0, 0, 0, 0x0b]));
        assert_eq!(target_mac(&mac), other);
        assert_eq!(target_mac(&[&[14, 1, 9, 9, 9, 9, 9, 9], &mac[..]].concat()), other);
        for broken in [&[][..], &[2], &[2, 0, 0, 0, 0, 0, 0, 0], &[2, 2, 0, 0, 0, 0, 0, 0], &mac[..7]] {
            assert_eq!(target_mac(broken), None, "{broken:?}");
        }
        let mut message = vec![ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0];
        message.extend(IP.octets());
        assert_eq!(holder(&packet(MAC, IP, ALL_NODES, message), IP), Some(MAC), "the frame's sender");
    }
}
