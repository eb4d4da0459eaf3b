//! Links: whether two hosts that a tunnel joins hear each other, in which direction not, and how well.
//!
//! Both ends send probes, each in the tunnel's own datagrams. A probe says what its sender hears, so that each end knows of
//! both directions, and carries back what the other needs to measure: no clock but one's own is relied on. The states are
//! those of BFD (RFC 5880), the form of a probe is our own.
//!
//! A peer that sends no probes is asked by an ICMP echo instead ([`echo`]), which tells of both directions together.

pub mod choice;
pub mod echo;
pub mod figures;
pub mod frame;
pub mod liveness;
pub mod mtu;
pub mod probe;
pub mod standby;
