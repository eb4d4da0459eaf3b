//! The 2015 JSON datagram.
