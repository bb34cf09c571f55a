//! Container logs in CRI's format: `TIME STREAM TAGS TEXT`, a line each
//! (upstream `pkg/kubelet/kuberuntime/logs`).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Error;
use crate::volumes::blocking;

/// A container that says nothing may still end, and its end writes nothing into the log: so long after the last
/// line, and as often, its state is asked for.
const SILENCE: Duration = Duration::from_secs(1);

/// What of a log is wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) follow: bool,
    /// The last lines only.
    pub(crate) tail: Option<usize>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<u64>,
    /// `stdout` or `stderr` only.
    pub(crate) stream: Option<String>,
}

/// One line as the runtime writes it.
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    Some(Line { time, stream, partial, text })
}

/// Lines of logs, for fuzz/.
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz {
    /// Lines as a runtime writes them, or anything else.
    pub fn log_line(data: &[u8]) {
        let plain = super::Wanted::default();
        let full = super::Wanted {
            timestamps: true,
            since: Some(jiff::Timestamp::UNIX_EPOCH),
            stream: Some("stdout".into()),
            ..super::Wanted::default()
        };
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            for wanted in [&plain, &full] {
                let rendered = super::render(line, wanted);
                assert!(rendered.is_none_or(|rendered| rendered.len() <= line.len() + 2));
            }
        }
    }
}

/// The line as a client gets it; `None` when it is not wanted.
fn render(line: &[u8], wanted: &Wanted) -> Option<Vec<u8>> {
    let parsed = parse(line.strip_suffix(b"\n").unwrap_or(line))?;
    if wanted.stream.as_deref().is_some_and(|stream| stream != parsed.stream) {
        return None;
    }
    if let Some(since) = wanted.since
        && parsed.time.parse::<Timestamp>().is_ok_and(|time| time < since)
    {
        return None;
    }
    let mut result = Vec::with_capacity(parsed.text.len() + 40);
    if wanted.timestamps {
        result.extend_from_slice(parsed.time.as_bytes());
        result.push(b' ');
    }
    result.extend_from_slice(parsed.text);
    if !parsed.partial {
        result.push(b'\n');
    }
    Some(result)
}

/// The end of a log as text, for a termination message.
pub(crate) fn last_lines(log: &Path, lines: usize, limit: usize) -> String {
    let Ok(mut file) = File::open(log) else { return String::new() };
    let start = start_of_tail(&mut file, lines).unwrap_or(0);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(start)).is_err() || file.read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    let wanted = Wanted::default();
    let mut text: Vec<u8> =
        bytes.split_inclusive(|b| *b == b'\n').filter_map(|line| render(line, &wanted)).flatten().collect();
    if text.len() > limit {
        text.drain(..text.len() - limit);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Where the last `lines` lines begin, found from the end in blocks.
fn start_of_tail(file: &mut File, lines: usize) -> std::io::Result<u64> {
    let mut at = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(at);
    }
    let mut found = 0;
    let mut block = vec![0; 64 * 1024];
    let end = at;
    while at > 0 {
        let size = at.min(block.len() as u64);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        let part = &mut block[..usize::try_from(size).unwrap_or(0)];
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let position = at + index as u64;
            if *byte == b'\n' && position + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
    }
    Ok(0)
}

/// Rotated parts first, so that a request sees the whole log.
fn parts_of(log: &Path) -> VecDeque<PathBuf> {
    let name = log.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut parts: Vec<PathBuf> = log
        .parent()
        .and_then(|dir| std::fs::read_dir(dir).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}.")))
        })
        .collect();
    parts.sort();
    parts.push(log.to_path_buf());
    parts.into()
}

/// Sends the log into `sender`; with `follow` until `alive` says that the container has ended and
/// everything was sent, or until the receiver is gone.
pub(crate) async fn stream<A, F>(
    log: PathBuf,
    wanted: Wanted,
    sender: mpsc::Sender<Bytes>,
    alive: A,
) -> Result<(), Error>
where
    A: Fn() -> F + Send,
    F: Future<Output = bool> + Send,
{
    let (follow, file) = (wanted.follow, log.clone());
    let (mut parts, mut reading) = blocking(move || {
        let parts = if wanted.tail.is_some() { VecDeque::from([file]) } else { parts_of(&file) };
        let first = parts.front().cloned().unwrap_or_default();
        Ok((parts, Reading::open(&first, wanted)?))
    })
    .await?;
    let watch = if follow { Some(watch(&log)?) } else { None };
    while parts.len() > 1 {
        parts.pop_front();
        let Some((mut read, _)) = reading.send(&sender).await? else { return Ok(()) };
        let next = parts.front().cloned().unwrap_or_default();
        reading = blocking(move || read.go_on_with(&next).map(|()| read)).await?;
    }
    let mut ask_at = Instant::now();
    loop {
        let Some((read, anything)) = reading.send(&sender).await? else { return Ok(()) };
        reading = read;
        let Some(watch) = &watch else { return Ok(()) };
        if Instant::now() >= ask_at {
            let goes_on = alive().await;
            if !goes_on {
                reading.send(&sender).await?;
                return Ok(());
            }
            ask_at = Instant::now() + SILENCE;
        } else if anything {
            ask_at = Instant::now() + SILENCE;
        }
        tokio::select! {
            ready = watch.readable() => {
                let mut guard = ready.map_err(failed)?;
                let events = watch.get_ref().0.read_events();
                guard.clear_ready();
                let replaced = events.is_ok_and(|events| events.iter().any(|event| {
                    event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
                        && event.name.as_deref() == log.file_name()
                }));
                if replaced {
                    // Rotated: what is left of the old file first.
                    let Some((mut read, _)) = reading.send(&sender).await? else { return Ok(()) };
                    let log = log.clone();
                    reading = blocking(move || read.go_on_with(&log).map(|()| read)).await?;
                }
            }
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep_until(ask_at) => {}
        }
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("read the container's log", error)
}

struct Watch(Inotify);

impl std::os::fd::AsRawFd for Watch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

/// Watches the log's folder: the file is replaced when it is rotated.
fn watch(log: &Path) -> Result<AsyncFd<Watch>, Error> {
    let failed = |error: std::io::Error| Error::io("watch the container's log", error);
    let inotify =
        Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| failed(e.into()))?;
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    inotify.add_watch(log.parent().unwrap_or(Path::new("/")), flags).map_err(|e| failed(e.into()))?;
    #[expect(deprecated, reason = "its successor is unsafe; the descriptor is owned")]
    let watch = AsyncFd::new(Watch(inotify));
    watch.map_err(failed)
}

/// A log that is being read, off the runtime's threads: disks may be slow.
struct Reading {
    reader: BufReader<File>,
    /// The runtime may be in the middle of a line.
    unfinished: Vec<u8>,
    wanted: Wanted,
    /// Bytes that may still be sent.
    left: u64,
}

impl Reading {
    fn open(log: &Path, wanted: Wanted) -> Result<Self, Error> {
        let mut file = File::open(log).map_err(failed)?;
        let start = match wanted.tail {
            Some(lines) => start_of_tail(&mut file, lines).map_err(failed)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let left = wanted.limit_bytes.unwrap_or(u64::MAX);
        Ok(Self { reader: BufReader::new(file), unfinished: Vec::new(), wanted, left })
    }

    fn go_on_with(&mut self, log: &Path) -> Result<(), Error> {
        self.reader = BufReader::new(File::open(log).map_err(failed)?);
        self.unfinished.clear();
        Ok(())
    }

    /// The next lines, and whether there are no more for now.
    fn batch(&mut self) -> std::io::Result<(Vec<u8>, bool)> {
        let mut batch = Vec::new();
        let mut ended = false;
        while batch.len() < 32 * 1024 {
            if self.reader.read_until(b'\n', &mut self.unfinished)? == 0 || !self.unfinished.ends_with(b"\n")
            {
                ended = true;
                break;
            }
            if let Some(line) = render(&self.unfinished, &self.wanted) {
                batch.extend_from_slice(&line);
            }
            self.unfinished.clear();
        }
        let size = batch.len() as u64;
        if size > self.left {
            batch.truncate(usize::try_from(self.left).unwrap_or(0));
        }
        self.left = self.left.saturating_sub(size);
        Ok((batch, ended))
    }

    /// Sends what can be read now, and says whether that was anything. `None`: nobody listens any more, or the
    /// limit is reached.
    async fn send(mut self, sender: &mpsc::Sender<Bytes>) -> Result<Option<(Self, bool)>, Error> {
        let mut anything = false;
        loop {
            let (read, (batch, ended)) = blocking(move || {
                let batch = self.batch().map_err(failed)?;
                Ok((self, batch))
            })
            .await?;
            self = read;
            anything |= !batch.is_empty();
            if !batch.is_empty() && sender.send(Bytes::from(batch)).await.is_err() {
                return Ok(None);
            }
            if self.left == 0 {
                return Ok(None);
            }
            if ended {
                return Ok(Some((self, anything)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n\
                       2026-01-01T00:00:03Z stdout P thr\n2026-01-01T00:00:03Z stdout F ee\n";

    async fn read(wanted: Wanted) -> String {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = dir.path().join("0.log");
        std::fs::write(&log, LOG).expect("written");
        let (sender, mut receiver) = mpsc::channel(16);
        stream(log, wanted, sender, || std::future::ready(false)).await.expect("read");
        let mut text = Vec::new();
        while let Some(bytes) = receiver.recv().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).expect("text")
    }

    #[tokio::test]
    async fn options() {
        let since = "2026-01-01T00:00:03Z".parse().ok();
        for (wanted, expected) in [
            (Wanted::default(), "one\ntwo\nthree\n"),
            (Wanted { tail: Some(3), ..Wanted::default() }, "two\nthree\n"),
            (Wanted { tail: Some(0), ..Wanted::default() }, ""),
            (Wanted { since, ..Wanted::default() }, "three\n"),
            (Wanted { limit_bytes: Some(5), ..Wanted::default() }, "one\nt"),
            (
                Wanted { stream: Some("stderr".into()), timestamps: true, ..Wanted::default() },
                "2026-01-01T00:00:02Z two\n",
            ),
            (Wanted { follow: true, ..Wanted::default() }, "one\ntwo\nthree\n"),
        ] {
            assert_eq!(read(wanted.clone()).await, expected, "{wanted:?}");
        }
    }

    #[tokio::test]
    async fn a_container_that_writes_is_not_asked_for_its_state() {
        use std::io::Write as _;
        use std::sync::Arc;
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

        let dir = tempfile::tempdir().expect("a temporary folder");
        let log = dir.path().join("0.log");
        let mut file = File::create(&log).expect("made");
        let (sender, mut receiver) = mpsc::channel(16);
        let (asked, running) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let (questions, state) = (asked.clone(), running.clone());
        let alive = move || {
            questions.fetch_add(1, Ordering::SeqCst);
            std::future::ready(state.load(Ordering::SeqCst))
        };
        let wanted = Wanted { follow: true, ..Wanted::default() };
        let begun = Instant::now();
        let follow = stream(log.clone(), wanted, sender, alive);
        let write = async {
            for number in 0..200 {
                writeln!(file, "2026-01-01T00:00:01Z stdout F {number}").expect("written");
                assert_eq!(receiver.recv().await, Some(Bytes::from(format!("{number}\n"))));
            }
            let (times, most) = (asked.load(Ordering::SeqCst), begun.elapsed().as_secs() + 2);
            assert!(times <= most, "asked {times} times, expected at most {most}");

            // Rotated, written to once more, and ended.
            std::fs::rename(&log, dir.path().join("0.log.1")).expect("renamed");
            let mut file = File::create(&log).expect("made");
            writeln!(file, "2026-01-01T00:00:02Z stdout F last").expect("written");
            assert_eq!(receiver.recv().await, Some(Bytes::from("last\n")));
            running.store(false, Ordering::SeqCst);
            assert_eq!(receiver.recv().await, None);
        };
        let (followed, ()) = futures::future::join(follow, write).await;
        followed.expect("read to its end");
    }
}
