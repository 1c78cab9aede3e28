//! ARP for IPv4 over Ethernet: RFC 826, with the questions and announcements of RFC 5227.

use std::net::Ipv4Addr;

use super::wire::{HEADER, Mac, frame};

pub(super) const ETHERTYPE: u16 = 0x0806;

const EVERYBODY: Mac = Mac([0xff; 6]);
const NOBODY: Mac = Mac([0; 6]);
/// Ethernet, IPv4, and how long their addresses are.
const KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
const LENGTH: usize = 28;

/// "Who has it?", without saying that the sender does: nobody's cache changes by it.
pub(super) fn probe(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    packet(REQUEST, mac, Ipv4Addr::UNSPECIFIED, NOBODY, ip)
}

/// "It is at `mac`", as a request, which RFC 5227 wants, and as a reply, which some listen to instead. The reply names
/// the MAC address as its target's, too (RFC 5944, 4.6): Linux takes it for gratuitous only then.
pub(super) fn announcements(mac: Mac, ip: Ipv4Addr) -> [Vec<u8>; 2] {
    [packet(REQUEST, mac, ip, NOBODY, ip), packet(REPLY, mac, ip, mac, ip)]
}

/// Who says in this frame that it has `ip`.
pub(super) fn holder(frame: &[u8], ip: Ipv4Addr) -> Option<Mac> {
    let payload: &[u8; LENGTH] = frame.get(HEADER..)?.first_chunk()?;
    let kind_is_right = frame[12..HEADER] == ETHERTYPE.to_be_bytes() && payload[..6] == KIND;
    let says_so = (payload[6..8] == REQUEST || payload[6..8] == REPLY) && payload[14..18] == ip.octets();
    (kind_is_right && says_so).then_some(Mac(*payload[8..].first_chunk()?))
}

fn packet(operation: [u8; 2], mac: Mac, ip: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let payload = [&KIND, &operation[..], &mac.0, &ip.octets(), &target_mac.0, &target.octets()].concat();
    frame(EVERYBODY, mac, ETHERTYPE, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x0a]);
    const IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

    #[test]
    fn a_probe_claims_nothing() {
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x0a, 0x08, 0x06, // to all, from us, ARP
            0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01,                               // Ethernet, IPv4, request
            0x02, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0,                                     // sender: our MAC, no address
            0, 0, 0, 0, 0, 0, 192, 0, 2, 10,                                        // target: unknown MAC, the address
        ];
        assert_eq!(probe(MAC, IP), expected);
        assert_eq!(holder(&probe(MAC, IP), IP), None);
        assert_eq!(holder(&probe(MAC, IP), Ipv4Addr::UNSPECIFIED), Some(MAC), "the sender's address counts");
    }

    #[test]
    fn an_announcement_is_a_request_and_a_reply() {
        #[rustfmt::skip]
        let expected = [
            vec![
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x0a, 0x08, 0x06,
                0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01,
                0x02, 0, 0, 0, 0, 0x0a, 192, 0, 2, 10,
                0, 0, 0, 0, 0, 0, 192, 0, 2, 10,
            ],
            vec![
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x0a, 0x08, 0x06,
                0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x02,
                0x02, 0, 0, 0, 0, 0x0a, 192, 0, 2, 10,
                0x02, 0, 0, 0, 0, 0x0a, 192, 0, 2, 10,
            ],
        ];
        assert_eq!(announcements(MAC, IP).as_slice(), expected);
        for frame in announcements(MAC, IP) {
            assert_eq!(holder(&frame, IP), Some(MAC));
        }
    }

    #[test]
    fn an_answer_is_understood_and_nothing_else() {
        #[rustfmt::skip]
        let answer = [
            0x02, 0, 0, 0, 0, 0x0a, 0x02, 0, 0, 0, 0, 0x0b, 0x08, 0x06,
            0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x02,
            0x02, 0, 0, 0, 0, 0x0b, 192, 0, 2, 10,
            0x02, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0,
        ];
        let other = Some(Mac([0x02, 0, 0, 0, 0, 0x0b]));
        assert_eq!(holder(&answer, IP), other);
        assert_eq!(holder(&[&answer[..], &[0; 18]].concat(), IP), other, "padded to 60 bytes");
        assert_eq!(holder(&answer, Ipv4Addr::new(192, 0, 2, 11)), None);
        for n in 0..answer.len() {
            assert_eq!(holder(&answer[..n], IP), None, "cut off after {n}");
        }
        // Another type of frame, hardware, protocol, lengths, operation.
        for (place, byte) in [(12, 0x86), (15, 6), (16, 0x86), (18, 8), (19, 16), (20, 1), (21, 3)] {
            let mut answer = answer;
            answer[place] = byte;
            assert_eq!(holder(&answer, IP), None, "byte {place}");
        }
    }
}
