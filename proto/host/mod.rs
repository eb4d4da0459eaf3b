//! What both programs do with the host that they run on. The one part of `proto` that acts, and that no pure file
//! uses.

pub mod accept;
pub mod access;
pub mod client;
pub mod clock;
pub mod credential;
pub mod file;
pub mod limits;
pub mod local_user;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod output;
pub mod random;
pub mod signals;
pub mod socket;
pub mod tls;
pub mod wireguard;
pub mod words;

use tonic_reflection::server::Builder;

use super::v1;

/// Reflection for one service of ours, beside health. grpcurl shows the details of an error only if it can look up
/// their types.
pub fn reflection(service: &str) -> Builder<'_> {
    Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(service)
        .with_service_name("grpc.health.v1.Health")
}
