//! Compiles `proto/` without protoc, and keeps the descriptors for reflection.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message;

const ROOT: &str = "proto";
const FILES: [&str; 3] =
    ["proto/tunmesh/v1/tunnel.proto", "proto/tunmesh/v1/control.proto", "proto/tunmesh/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={ROOT}/tunmesh");
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, [ROOT])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let encoded = descriptors.encode_to_vec();
    fs::write(out.join("tunmesh.bin"), &encoded)?;
    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .btree_map(".")
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors)?;
    // JSON as protobuf defines it, so that every command prints what grpcurl prints.
    pbjson_build::Builder::new().register_descriptors(&encoded)?.btree_map(["."]).build(&[".tunmesh"])?;
    Ok(())
}
