//! Packets as bytes: framing, parsing, checksums, ICMP, MSS, fragments. Pure.
//!
//! [`frame`] tells what a datagram of the data port carries and [`parse`] checks the header of an IP packet, once;
//! what follows takes a [`parse::Packet`] and need not check again. Nothing here panics, whatever the bytes are, and
//! only what makes new packets ([`icmp`], [`fragment`]) allocates.

pub mod checksum;
pub mod coalesce;
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
