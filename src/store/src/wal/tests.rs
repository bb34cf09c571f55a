use super::*;

fn entry(term: u64, index: u64, data: &[u8]) -> Entry {
    Entry { term, index, data: data.to_vec(), ..Entry::default() }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit }
}

fn open(dir: &Path, from: u64) -> Result<(Wal, Recovered), Error> {
    Wal::open(dir, 1, 64 << 10, from, Arc::default())
}

/// A log of `n` entries of `size` bytes, one frame each.
fn filled(dir: &Path, n: u64, size: usize) -> Wal {
    let (mut wal, _) = open(dir, 0).unwrap();
    for i in 1..=n {
        wal.append(Some(&state(1, i - 1)), &[entry(1, i, &vec![i as u8; size])]).unwrap();
    }
    wal
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x41], at).unwrap();
}

#[test]
fn entries_come_back_over_several_segments() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 100, 3000));
    assert!(list(dir.path()).unwrap().len() > 3);
    let (wal, recovered) = open(dir.path(), 40).unwrap();
    assert_eq!((recovered.previous_index, recovered.last_index, wal.last_index), (0, 100, 100));
    assert_eq!(recovered.hard_state, state(1, 99));
    let expected: Vec<Entry> = (41..=100).map(|i| entry(1, i, &[i as u8; 3000])).collect();
    assert_eq!(recovered.entries, expected);
    assert_eq!(read(dir.path(), 1, 10, 12).unwrap().len(), 2);
}

#[test]
fn a_later_entry_replaces_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = filled(dir.path(), 5, 10);
    wal.append(Some(&state(2, 2)), &[entry(2, 3, b"new")]).unwrap();
    drop(wal);
    let (_, recovered) = open(dir.path(), 0).unwrap();
    assert_eq!(
        recovered.entries.iter().map(|e| (e.term, e.index)).collect::<Vec<_>>(),
        [(1, 1), (1, 2), (2, 3)]
    );
}

#[test]
fn cutting_removes_whole_segments_and_reuses_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = filled(dir.path(), 100, 3000);
    wal.cut(70).unwrap();
    assert!(dir.path().join(SPARE).exists());
    for i in 101..=140 {
        wal.append(None, &[entry(1, i, &[i as u8; 3000])]).unwrap();
    }
    assert!(!dir.path().join(SPARE).exists(), "the spare segment is in use again");
    drop(wal);
    let (_, recovered) = open(dir.path(), 70).unwrap();
    assert!(recovered.previous_index <= 70 && recovered.previous_index > 30);
    assert_eq!(recovered.entries.iter().map(|e| e.index).collect::<Vec<_>>(), (71..=140).collect::<Vec<_>>());
}

#[test]
fn a_torn_tail_is_cut_and_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let wal = filled(dir.path(), 3, 100);
    let (path, position) = (wal.last().path.clone(), wal.position);
    drop(wal);
    flip(&path, position - 20);
    let (mut wal, recovered) = open(dir.path(), 0).unwrap();
    assert_eq!(recovered.last_index, 2);
    wal.append(None, &[entry(2, 3, b"again")]).unwrap();
    drop(wal);
    assert_eq!(open(dir.path(), 0).unwrap().1.entries[2], entry(2, 3, b"again"));
}

#[test]
fn damage_before_the_tail_names_the_file() {
    for offset in [SEGMENT_HEADER as u64, SEGMENT_HEADER as u64 + 5, SEGMENT_HEADER as u64 + 60] {
        let dir = tempfile::tempdir().unwrap();
        let wal = filled(dir.path(), 3, 100);
        let path = wal.last().path.clone();
        drop(wal);
        flip(&path, offset);
        let error = open(dir.path(), 0).err().unwrap();
        assert!(matches!(&error, Error::DamagedLog { path: p, .. } if *p == path), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }
}

#[test]
fn a_bad_end_of_an_earlier_segment_is_no_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 100, 3000));
    let (_, first) = list(dir.path()).unwrap().remove(0);
    let bytes = fs::read(&first).unwrap();
    let last_frame =
        (0..bytes.len() - 16).step_by(8).rfind(|&at| format::frame(&bytes, at, 1).is_some()).unwrap();
    flip(&first, last_frame as u64 + 100);
    assert!(matches!(open(dir.path(), 0), Err(Error::DamagedLog { path, .. }) if path == first));
}

#[test]
fn a_missing_segment_and_a_foreign_node_are_named() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 100, 3000));
    assert!(matches!(
        Wal::open(dir.path(), 2, 64 << 10, 0, Arc::default()),
        Err(Error::WrongNode { found: 1, expected: 2, .. })
    ));
    fs::remove_file(dir.path().join("0000000000000002.log")).unwrap();
    let error = open(dir.path(), 0).err().unwrap();
    assert!(error.to_string().contains("0000000000000002.log"), "{error}");
}

#[test]
fn an_entry_larger_than_a_segment_gets_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = filled(dir.path(), 1, 10);
    wal.append(None, &[entry(1, 2, &vec![7; 200 << 10])]).unwrap();
    wal.append(None, &[entry(1, 3, b"small")]).unwrap();
    drop(wal);
    let (_, recovered) = open(dir.path(), 1).unwrap();
    assert_eq!(recovered.entries[0].data.len(), 200 << 10);
    assert_eq!(recovered.last_index, 3);
}

#[test]
fn a_log_that_starts_anew_forgets_the_rest_whenever_it_is_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = filled(dir.path(), 50, 3000);
    let before: Vec<_> = list(dir.path()).unwrap();
    let saved: Vec<Vec<u8>> = before.iter().map(|(_, path)| fs::read(path).unwrap()).collect();
    wal.reset(1000, 7, &state(8, 1000)).unwrap();
    assert_eq!(list(dir.path()).unwrap().len(), 1);
    wal.append(Some(&state(8, 1000)), &[entry(8, 1001, b"next")]).unwrap();
    drop(wal);
    for kept in [false, true] {
        if kept {
            // As if the old segments had not been removed yet.
            for ((_, path), bytes) in before.iter().zip(&saved) {
                fs::write(path, bytes).unwrap();
            }
        }
        let (wal, recovered) = open(dir.path(), 1000).unwrap();
        assert_eq!((recovered.previous_index, recovered.last_index), (1000, 1001), "{kept}");
        assert_eq!((recovered.hard_state.clone(), recovered.entries.len()), (state(8, 1000), 1));
        assert_eq!(wal.reread(1000).unwrap().1.len(), 1);
    }
}

#[test]
fn an_end_that_was_replaced_after_the_log_was_cut_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = filled(dir.path(), 60, 3000);
    let begins = wal.segments.back().unwrap().previous_index;
    assert!(begins > 3);
    // A new leader replaces entries of earlier segments too.
    let replaced: Vec<Entry> = (begins - 2..=begins + 3).map(|i| entry(2, i, b"new")).collect();
    wal.append(Some(&state(2, begins)), &replaced).unwrap();
    wal.cut(begins).unwrap();
    drop(wal);
    let (_, recovered) = open(dir.path(), begins).unwrap();
    assert_eq!(recovered.last_index, begins + 3);
    assert!(recovered.previous_index <= begins);
    assert_eq!(recovered.entries.iter().map(|e| e.term).collect::<Vec<_>>(), [2, 2, 2]);
}

/// The bytes of all segments.
fn content(dir: &Path) -> Vec<Vec<u8>> {
    list(dir).unwrap().into_iter().map(|(_, path)| fs::read(path).unwrap()).collect()
}

/// Sizes around those of sectors, pages, what is written ahead, and a whole segment.
const SIZES: [usize; 14] = [1, 300, 400, 512, 700, 3, 4096, 20_000, 90, 4000, 70_000, 511, 17_000, 1000];

#[test]
fn past_the_page_cache_or_through_it_the_file_is_the_same() {
    let ways: [fn(u64) -> bool; 4] = [|_| true, |_| false, |i| i % 2 == 0, |i| i % 7 < 4];
    let mut first = None;
    for way in ways {
        let dir = tempfile::tempdir().unwrap();
        let (mut wal, _) = open(dir.path(), 0).unwrap();
        for i in 1..=60 {
            let path = wal.last().path.clone();
            wal.direct = way(i).then(|| Direct::open(&path)).flatten();
            let size = SIZES[i as usize % SIZES.len()];
            wal.append(Some(&state(1, i - 1)), &[entry(1, i, &vec![i as u8; size])]).unwrap();
            if i % 13 == 0 {
                drop(wal);
                wal = open(dir.path(), 0).unwrap().0;
            }
        }
        drop(wal);
        let recovered = open(dir.path(), 0).unwrap().1;
        assert_eq!(recovered.entries.len(), 60);
        let content = content(dir.path());
        assert!(first.get_or_insert_with(|| content.clone()) == &content, "the bytes differ");
    }
}

#[test]
fn after_a_write_that_failed_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = filled(dir.path(), 5, 300);
    let path = wal.last().path.clone();
    wal.direct = Some(Direct::failing());
    let error = wal.append(None, &[entry(1, 6, b"lost")]).unwrap_err();
    assert!(error.is_full(), "{error}");
    wal.direct = Direct::open(&path);
    wal.append(None, &[entry(1, 6, b"kept")]).unwrap();
    drop(wal);
    let recovered = open(dir.path(), 0).unwrap().1;
    assert_eq!(recovered.entries.len(), 6);
    assert_eq!(recovered.entries[4], entry(1, 5, &[5; 300]));
    assert_eq!(recovered.entries[5], entry(1, 6, b"kept"));
}

#[test]
fn where_the_page_cache_is_needed_it_is_used() {
    for kind in [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported] {
        assert!(Direct::is_refusal(&kind.into()), "{kind}");
    }
    assert!(!Direct::is_refusal(&io::ErrorKind::StorageFull.into()));
    let full = 1 << 20;
    for (at, until, size, fits) in [
        (100, 1000, full, true),
        (100, 1000, 1000, false),
        (100, 1024, 1024, true),
        (0, 256 << 10, full, true),
        (0, (256 << 10) + 1, full, false),
    ] {
        assert_eq!(Direct::fits(at, until, size), fits, "{at} to {until} of {size}");
    }
}
