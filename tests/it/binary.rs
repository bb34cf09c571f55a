//! The file itself: static, stripped, small. No node is started.

use std::fs;

const PT_INTERP: u32 = 3;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNAMIC: u32 = 6;
const DT_NEEDED: u64 = 1;
const LIMIT: usize = 30 * 1024 * 1024;

/// A 64-bit little-endian ELF file (elf(5)).
struct Elf(Vec<u8>);

impl Elf {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.0[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn offset(&self, at: usize) -> usize {
        usize::try_from(self.u64(at)).unwrap()
    }

    /// Offsets of the program headers.
    fn segments(&self) -> Vec<usize> {
        let (start, size, count) = (self.offset(32), usize::from(self.u16(54)), usize::from(self.u16(56)));
        (0..count).map(|index| start + index * size).collect()
    }

    /// Offsets of the section headers.
    fn sections(&self) -> Vec<usize> {
        let (start, size, count) = (self.offset(40), usize::from(self.u16(58)), usize::from(self.u16(60)));
        (0..count).map(|index| start + index * size).collect()
    }
}

#[test]
fn static_stripped_and_small() {
    let path = kedge_tests::kedge_binary();
    let elf = Elf(fs::read(&path).unwrap());
    assert_eq!(&elf.0[..6], b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file");
    assert!(elf.0.len() < LIMIT, "{} bytes are not under 30 MiB", elf.0.len());

    let segments = elf.segments();
    assert!(!segments.is_empty());
    assert!(
        segments.iter().all(|segment| elf.u32(*segment) != PT_INTERP),
        "the binary asks for a dynamic loader"
    );
    for section in elf.sections() {
        let kind = elf.u32(section + 4);
        assert_ne!(kind, SHT_SYMTAB, "the binary has a symbol table: it is not stripped");
        if kind == SHT_DYNAMIC {
            let (start, size) = (elf.offset(section + 24), elf.offset(section + 32));
            for entry in (start..start + size).step_by(16) {
                assert_ne!(elf.u64(entry), DT_NEEDED, "the binary needs a shared library");
            }
        }
    }
    eprintln!("{}: {:.1} MiB", path.display(), elf.0.len() as f64 / (1024.0 * 1024.0));
}
