//! The vocabulary: everything that crosses a wire, parsed into types that cannot be wrong; and what both programs count
//! and do alike.
//!
//! Pure: values in, values out. Only [`convert`] and the generated [`v1`] know protobuf.

pub mod command;
pub mod convert;
pub mod host;
pub mod legacy;
pub mod model;
pub mod rate;
pub mod seats;
pub mod session;
pub mod source;
pub mod trust;
pub mod words;

/// The generated messages and services of `proto/tunmesh/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("tunmesh.v1");
    include!(concat!(env!("OUT_DIR"), "/tunmesh.v1.serde.rs"));

    /// The encoded descriptors of every file, for reflection.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("tunmesh");
}
