//! Packs the tables of types: text that is read once would be a large part of the program's constants.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

fn main() {
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    for name in ["types.txt", "protobuf.txt"] {
        let source = Path::new("data").join(name);
        println!("cargo:rerun-if-changed={}", source.display());
        let table = std::fs::read(source).expect("read the table");
        let packed =
            File::create(Path::new(&out).join(format!("{name}.gz"))).expect("create the packed file");
        let mut gzip = GzEncoder::new(packed, Compression::best());
        gzip.write_all(&table).expect("write the packed file");
        gzip.finish().expect("finish the packed file");
    }
}
