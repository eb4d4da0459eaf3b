//! The operating system: devices, netlink, sockets, readiness. The only place with unsafe code.

pub mod clock;
pub mod epoll;
pub mod holder;
pub mod netlink;
pub mod ping;
pub mod preflight;
pub mod probe;
pub mod tun;
pub mod udp;
