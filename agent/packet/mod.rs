//! Packets as bytes: framing, parsing, checksums, ICMP, MSS, fragments. Pure.
