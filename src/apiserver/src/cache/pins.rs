//! What is left of chunked lists, so that every chunk is of the same moment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::bucket::{Objects, Stored};

/// Views that continue tokens may refer to, per bucket, and for how long after the first chunk.
const PINS: usize = 32;
const PIN_AGE: Duration = Duration::from_secs(300);
/// For so long after the last chunk, which a client may ask for once more.
const AFTERWARDS: Duration = Duration::from_secs(30);
/// Bytes of objects that have changed or gone since and that only pins keep.
const PINNED_BYTES: usize = 16 << 20;

/// Of one bucket, the oldest first.
#[derive(Default)]
pub(super) struct Pins(Mutex<VecDeque<Pin>>);

struct Pin {
    revision: u64,
    prefix: Box<str>,
    until: Instant,
    /// Lists that have begun and not ended.
    readers: usize,
    /// In the order of their keys, as of the list's first chunk.
    rest: Arc<[Arc<Stored>]>,
    bytes: usize,
}

impl Pin {
    fn is(&self, revision: u64, prefix: &str) -> bool {
        self.revision == revision && *self.prefix == *prefix
    }

    /// What it keeps of what is not in the bucket any more.
    fn outdated(&self, objects: &Objects) -> usize {
        let is_current = |stored: &Arc<Stored>| {
            objects.get(&stored.key).is_some_and(|current| Arc::ptr_eq(current, stored))
        };
        self.rest.iter().filter(|stored| !is_current(stored)).map(|stored| stored.bytes.len()).sum()
    }
}

impl Pins {
    /// Keeps what follows the first chunk of a list for its continue tokens. `objects` are those of the bucket now.
    pub(super) fn begin(
        &self,
        now: Instant,
        revision: u64,
        prefix: &str,
        rest: &[Arc<Stored>],
        objects: &Objects,
    ) {
        let mut pins = self.0.lock();
        let known = pins.iter().position(|pin| pin.is(revision, prefix)).and_then(|at| pins.remove(at));
        let mut pin = match known {
            // Whoever took larger chunks pinned less.
            Some(known) if known.rest.len() >= rest.len() => known,
            known => Pin {
                revision,
                prefix: prefix.into(),
                until: now,
                readers: known.map_or(0, |known| known.readers),
                rest: rest.into(),
                bytes: rest.iter().map(|stored| stored.bytes.len()).sum(),
            },
        };
        pin.readers += 1;
        pin.until = now + PIN_AGE;
        if pins.len() == PINS {
            pins.pop_front();
        }
        pins.push_back(pin);
        limit(&mut pins, now, objects);
    }

    /// What [`Pins::begin`] kept, unless it has expired.
    pub(super) fn get(&self, now: Instant, revision: u64, prefix: &str) -> Option<Arc<[Arc<Stored>]>> {
        let pins = self.0.lock();
        let pin = pins.iter().find(|pin| pin.is(revision, prefix) && now < pin.until);
        pin.map(|pin| pin.rest.clone())
    }

    /// A list has got its last chunk.
    pub(super) fn end(&self, now: Instant, revision: u64, prefix: &str) {
        let mut pins = self.0.lock();
        if let Some(pin) = pins.iter_mut().find(|pin| pin.is(revision, prefix)) {
            pin.readers = pin.readers.saturating_sub(1);
            if pin.readers == 0 {
                pin.until = pin.until.min(now + AFTERWARDS);
            }
        }
    }

    /// Forgets what has expired and what is too much.
    pub(super) fn sweep(&self, now: Instant, objects: &Objects) {
        limit(&mut self.0.lock(), now, objects);
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

fn limit(pins: &mut VecDeque<Pin>, now: Instant, objects: &Objects) {
    pins.retain(|pin| now < pin.until);
    // Most of what is pinned is in the bucket as well and costs nothing.
    if pins.iter().map(|pin| pin.bytes).sum::<usize>() <= PINNED_BYTES {
        return;
    }
    let mut kept = 0;
    let newest = pins.len().saturating_sub(1);
    let fits: Vec<bool> = pins
        .iter()
        .enumerate()
        .rev()
        .map(|(index, pin)| {
            kept += pin.outdated(objects);
            kept <= PINNED_BYTES || index == newest
        })
        .collect();
    let mut fits = fits.into_iter().rev();
    pins.retain(|_| fits.next().unwrap_or(false));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A bucket of 100 objects of 64 KiB each.
    fn objects() -> Objects {
        let bytes = Bytes::from(vec![b'x'; 64 << 10]);
        let stored =
            |index| Arc::new(Stored::for_test(&format!("/{index:03}"), bytes.clone(), Arc::default()));
        (0..100).map(stored).map(|stored| (stored.key.clone(), stored)).collect()
    }

    fn begin(pins: &Pins, now: Instant, revision: u64, objects: &Objects) {
        pins.begin(now, revision, "", &objects.values().cloned().collect::<Vec<_>>(), objects);
    }

    fn held(pins: &Pins, now: Instant) -> Vec<u64> {
        let revisions = pins.0.lock().iter().map(|pin| pin.revision).collect::<Vec<_>>();
        revisions.into_iter().filter(|revision| pins.get(now, *revision, "").is_some()).collect()
    }

    #[test]
    fn what_only_pins_keep_is_bounded() {
        let (pins, now) = (Pins::default(), Instant::now());
        let unchanged = objects();
        for revision in 0..5 {
            begin(&pins, now, revision, &unchanged);
        }
        assert_eq!(held(&pins, now), [0, 1, 2, 3, 4], "what is in the bucket anyway costs nothing");
        pins.clear();
        let all: Vec<Objects> = (0..5).map(|_| objects()).collect();
        for (revision, objects) in all.iter().enumerate() {
            begin(&pins, now, revision as u64, objects);
        }
        // Two old ones of 6.4 MB each, and the newest, which is that of the bucket.
        assert_eq!(held(&pins, now), [2, 3, 4]);
        pins.sweep(now, &objects());
        assert_eq!(held(&pins, now), [3, 4]);
        let large = Bytes::from(vec![b'x'; 17 << 20]);
        let large = Arc::new(Stored::for_test("/large", large, Arc::default()));
        pins.begin(now, 9, "", &[large], &Objects::new());
        assert_eq!(held(&pins, now), [9], "the newest always stays");
    }

    #[test]
    fn a_pin_goes_soon_after_the_last_of_its_lists() {
        let (pins, now) = (Pins::default(), Instant::now());
        let objects = objects();
        begin(&pins, now, 7, &objects);
        begin(&pins, now + Duration::from_secs(200), 7, &objects);
        let later = now + Duration::from_secs(400);
        assert_eq!(held(&pins, later), [7], "the second list has its own time");
        pins.end(now, 7, "");
        assert_eq!(held(&pins, later), [7]);
        pins.end(later, 7, "");
        assert_eq!(held(&pins, later), [7], "the last chunk may be asked for again");
        assert!(held(&pins, later + AFTERWARDS).is_empty());
    }
}
