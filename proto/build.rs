//! Generates the gRPC code from the `.proto` files, without `protoc`.

use std::path::PathBuf;

const FILES: [&str; 9] = [
    "coffer/v1/directory.proto",
    "coffer/v1/chunk.proto",
    "coffer/v1/login.proto",
    "coffer/v1/cluster.proto",
    "coffer/v1/admin.proto",
    "coffer/v1/files.proto",
    "coffer/internal/v1/authority.proto",
    "coffer/internal/v1/member.proto",
    "coffer/internal/v1/storage.proto",
];

/// Messages with passwords, tokens or content in them. They are printed without what they hold.
const PRIVATE: [&str; 10] = [
    "coffer.v1.RegisterRequest",
    "coffer.v1.RegisterResponse",
    "coffer.v1.LoginRequest",
    "coffer.v1.LoginResponse",
    "coffer.v1.SessionToken",
    "coffer.v1.PutRequest",
    "coffer.v1.GetResponse",
    "coffer.v1.WriteUploadRequest",
    "coffer.v1.PutStreamRequest",
    "coffer.v1.GetStreamResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=coffer");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .skip_debug(PRIVATE)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
