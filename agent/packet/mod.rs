//! Packets as bytes: framing, parsing, checksums, ICMP, MSS, fragments. Pure.
//!
//! [`frame`] tells what a datagram of the data port carries and [`parse`] checks the header of an IP packet, once;
//! what follows takes a [`parse::Packet`] and need not check again. Nothing here panics, whatever the bytes are, and
//! only what makes new packets ([`icmp`], [`echo`], [`fragment`]) allocates.

pub mod checksum;
pub mod coalesce;
pub mod echo;
pub mod ecn;
pub mod fragment;
pub mod frame;
pub mod icmp;
pub mod mss;
pub mod parse;
#[cfg(test)]
mod sample;
pub mod split;
pub mod vnet;

/// Lengths and fields of headers that several files look at, in bytes: RFC 791, RFC 8200, RFC 9293, RFC 768.
mod header {
    /// Of IPv4 without options.
    pub(super) const V4: usize = 20;
    /// Of IPv6 without extension headers.
    pub(super) const V6: usize = 40;
    /// Of TCP without options.
    pub(super) const TCP: usize = 20;
    pub(super) const UDP: usize = 8;
    /// Where TCP and UDP have their checksums.
    pub(super) const TCP_CHECKSUM: usize = 16;
    pub(super) const UDP_CHECKSUM: usize = 6;

    /// TCP's flags.
    pub(super) const FIN: u8 = 0x01;
    pub(super) const SYN: u8 = 0x02;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const ECE: u8 = 0x40;
    pub(super) const CWR: u8 = 0x80;
}

/// Protocol numbers (IANA) that the files here look into.
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ICMPV4: u8 = 1;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
}
