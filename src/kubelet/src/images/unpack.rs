//! Compressed archives: gzip (single or many members) and zstd (single or many frames) are unpacked into a
//! file without a name, because images are read from their archive by place.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use crate::Error;

/// The archive as an uncompressed file; `work_dir` needs room for what is compressed.
pub(super) fn open(path: &Path, work_dir: &Path) -> Result<File, Error> {
    let failed = |error| Error::io(format!("open {}", path.display()), error);
    let file = File::open(path).map_err(failed)?;
    let mut magic = [0; 4];
    let known = file.read_at(&mut magic, 0).map_err(failed)?;
    let kind: fn(File, &mut File) -> io::Result<()> = match &magic[..known] {
        [0x1f, 0x8b, ..] => gunzip,
        [0x28, 0xb5, 0x2f, 0xfd] => unzstd,
        _ => return Ok(file),
    };
    let unpack = || {
        std::fs::create_dir_all(work_dir)?;
        let mut plain = tempfile::tempfile_in(work_dir)?;
        kind(file, &mut plain)?;
        plain.rewind()?;
        Ok(plain)
    };
    unpack().map_err(|error| Error::io(format!("unpack {} in {}", path.display(), work_dir.display()), error))
}

fn gunzip(file: File, plain: &mut File) -> io::Result<()> {
    io::copy(&mut flate2::read::MultiGzDecoder::new(BufReader::new(file)), plain).map(drop)
}

fn unzstd(file: File, plain: &mut File) -> io::Result<()> {
    let mut source = BufReader::with_capacity(1 << 20, file);
    let mut chunk = vec![0; 1 << 20];
    while !source.fill_buf()?.is_empty() {
        let mut frame = match StreamingDecoder::new(&mut source) {
            Ok(frame) => frame,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                io::copy(&mut source.by_ref().take(length.into()), &mut io::sink())?;
                continue;
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        loop {
            let read = frame.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            plain.write_all(&chunk[..read])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpacked(bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("archive");
        std::fs::write(&path, bytes).expect("written");
        let mut found = Vec::new();
        open(&path, &dir.path().join("work"))?.read_to_end(&mut found).expect("read");
        Ok(found)
    }

    #[test]
    fn what_is_compressed_is_unpacked() {
        let content = vec![b'x'; 3 << 20];
        let gzip = |part: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(part).expect("compressed");
            encoder.finish().expect("finished")
        };
        let zstd = |part: &[u8]| {
            ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest)
        };
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        assert_eq!(unpacked(&content).expect("plain"), content);
        assert_eq!(unpacked(&[gzip(&content[..9]), gzip(&content[9..])].concat()).expect("gzip"), content);
        let frames = [zstd(&content[..7]), skipped.to_vec(), zstd(&content[7..])].concat();
        assert_eq!(unpacked(&frames).expect("zstd"), content);
    }

    #[test]
    fn what_was_cut_off_is_refused() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"some content that is longer than a few bytes").expect("compressed");
        let whole = encoder.finish().expect("finished");
        let error = unpacked(&whole[..whole.len() - 12]).expect_err("cut off").text();
        assert!(error.contains("unpack"), "{error}");
    }
}
