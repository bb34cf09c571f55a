//! `/logs/`: the files of the host's log folder, as Go's file server shows them (upstream `server.go`,
//! `enableSystemLogHandler`). Links that lead out of the folder are not followed: pods may write there.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use nix::libc;
use tokio::sync::mpsc;

use super::{Answer, LOG_CHUNKS, Refusal, text};
use crate::core::Shared;
use crate::volumes;

const CHUNK: usize = 64 << 10;

enum Found {
    Folder(Vec<(String, bool)>),
    File(File, u64),
}

/// The file or folder below the log folder that `path` (`/logs/...`, percent-encoded) names.
pub(super) async fn answer(core: &Shared, path: &str) -> Result<Answer, Refusal> {
    let Some(wanted) = path.strip_prefix("/logs").map(decode) else {
        return Err(Refusal::not_found("404 page not found"));
    };
    // Logs of pods are one level below the host's.
    let root = core.config.log_dir.parent().unwrap_or(&core.config.log_dir).to_path_buf();
    let relative = wanted.trim_start_matches('/').to_owned();
    let found = volumes::blocking(move || Ok(find(&root, &relative))).await;
    let found = found.map_err(|error| Refusal::internal(&error))?;
    match found {
        None => Err(Refusal::not_found("404 page not found")),
        Some(Found::Folder(_)) if !wanted.ends_with('/') => {
            let last = path.rsplit('/').next().unwrap_or_default();
            let mut answer = text(StatusCode::MOVED_PERMANENTLY, "");
            if let Ok(place) = HeaderValue::from_str(&format!("{last}/")) {
                answer.headers_mut().insert(header::LOCATION, place);
            }
            Ok(answer)
        }
        Some(Found::Folder(entries)) => {
            let mut answer = text(StatusCode::OK, listing(&entries));
            let kind = HeaderValue::from_static("text/html; charset=utf-8");
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            Ok(answer)
        }
        Some(Found::File(file, size)) => Ok(stream(core, file, size)),
    }
}

fn find(root: &Path, relative: &str) -> Option<Found> {
    show(&handle(root, relative)?)
}

/// What is there, without opening it: a pod may put a link, a pipe or a device in a file's place at any moment.
/// Whatever the path was, the kernel says where what we hold lies. (openat2 refuses the links with whole paths
/// that lead to pods' logs.)
fn handle(root: &Path, relative: &str) -> Option<File> {
    let root = root.canonicalize().ok()?;
    let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(root.join(relative)).ok()?;
    fs::read_link(in_proc(&handle)).ok()?.starts_with(&root).then_some(handle)
}

fn show(handle: &File) -> Option<Found> {
    let kind = handle.metadata().ok()?;
    let place = in_proc(handle);
    if kind.is_file() {
        // A pod that leases the file must not keep us waiting.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(place).ok()?;
        return Some(Found::File(file, kind.len()));
    }
    // Not devices or pipes: they may never end.
    if !kind.is_dir() {
        return None;
    }
    let mut entries: Vec<(String, bool)> = fs::read_dir(place)
        .ok()?
        .flatten()
        .map(|entry| {
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            (entry.file_name().to_string_lossy().into_owned(), folder)
        })
        .collect();
    entries.sort();
    Some(Found::Folder(entries))
}

/// The way to what `handle` holds, whatever has its name by now.
fn in_proc(handle: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

fn listing(entries: &[(String, bool)]) -> String {
    let mut page =
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n".to_owned();
    for (name, folder) in entries {
        let name = if *folder { format!("{name}/") } else { name.clone() };
        page.push_str(&format!("<a href=\"{}\">{}</a>\n", encode(&name), escape(&name)));
    }
    page.push_str("</pre>\n");
    page
}

/// The file's bytes as they are now; what is written later is not waited for.
fn stream(core: &Shared, file: File, size: u64) -> Answer {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(LOG_CHUNKS);
    core.tasks.spawn_until_stopped("host log", async move {
        let sent = volumes::blocking(move || {
            let mut rest = file.take(size);
            loop {
                let mut chunk = vec![0; CHUNK];
                let read = match rest.read(&mut chunk) {
                    Ok(0) => return Ok(()),
                    Ok(read) => read,
                    Err(error) => {
                        let _ = sender.blocking_send(Err(error));
                        return Ok(());
                    }
                };
                chunk.truncate(read);
                // The reader went away.
                if sender.blocking_send(Ok(chunk.into())).is_err() {
                    return Ok(());
                }
            }
        });
        if let Err(error) = sent.await {
            tracing::debug!(error = %error.text(), "log of the host not sent to its end");
        }
    });
    let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk.map(Frame::data), receiver))
    });
    let mut answer = text(StatusCode::OK, "");
    *answer.body_mut() = StreamBody::new(chunks).boxed();
    answer
}

fn decode(path: &str) -> String {
    // Only in queries is a plus sign a space.
    let query = path.replace('+', "%2B");
    let pair = form_urlencoded::parse(query.as_bytes()).next();
    // "=" and "&" have a meaning there that they do not have here.
    if query.contains(['=', '&']) {
        return path.to_owned();
    }
    pair.map(|(path, _)| path.into_owned()).unwrap_or_default()
}

fn encode(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/$&+,=:@".contains(&byte);
    let mut text = String::new();
    // The first part of a relative address must not look like a scheme.
    if name.contains(':') {
        text.push_str("./");
    }
    for byte in name.bytes() {
        if plain(byte) { text.push(char::from(byte)) } else { text.push_str(&format!("%{byte:02X}")) }
    }
    text
}

fn escape(name: &str) -> String {
    let mut text = name.replace('&', "&amp;");
    for (from, to) in [('<', "&lt;"), ('>', "&gt;"), ('"', "&#34;"), ('\'', "&#39;")] {
        text = text.replace(from, to);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_folder() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().join("log");
        fs::create_dir_all(root.join("pods")).expect("a folder");
        fs::write(root.join("a.log"), "a\n").expect("written");
        fs::write(dir.path().join("secret"), "s\n").expect("written");
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("out")).expect("a link");
        std::os::unix::fs::symlink(root.join("a.log"), root.join("in")).expect("a link");
        for (path, expected) in [
            ("", true),
            ("a.log", true),
            ("in", true),
            ("pods/../a.log", true),
            ("out", false),
            ("../secret", false),
            ("/etc/passwd", false),
            ("nothing", false),
        ] {
            assert_eq!(find(&root, path).is_some(), expected, "{path}");
        }
        let Some(Found::Folder(entries)) = find(&root, "") else { panic!("a folder") };
        let page = listing(&entries);
        assert!(
            page.contains("<a href=\"a.log\">a.log</a>\n") && page.contains("<a href=\"pods/\">pods/</a>\n")
        );
    }

    #[test]
    fn what_takes_a_files_place_is_not_opened() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().join("log");
        fs::create_dir_all(root.join("pods")).expect("a folder");
        fs::write(root.join("a.log"), "a\n").expect("written");
        fs::write(dir.path().join("secret"), "s\n").expect("written");
        let fifo = root.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        std::os::unix::fs::symlink(&fifo, root.join("to-fifo")).expect("a link");
        std::os::unix::fs::symlink("/dev/zero", root.join("device")).expect("a link");
        std::os::unix::fs::symlink(dir.path(), root.join("out")).expect("a link");
        // Nobody writes to the pipe: to open it would take for ever.
        for (path, folder) in [
            ("a.log", Some(false)),
            ("pods", Some(true)),
            ("pods/", Some(true)),
            ("fifo", None),
            ("to-fifo", None),
            ("device", None),
            ("out", None),
            ("out/secret", None),
            ("out/log/a.log", Some(false)),
        ] {
            let found = find(&root, path).map(|found| matches!(found, Found::Folder(_)));
            assert_eq!(found, folder, "{path}");
        }
        let held = handle(&root, "a.log").expect("a file");
        fs::rename(root.join("out"), root.join("a.log")).expect("swapped in");
        let Some(Found::File(mut file, size)) = show(&held) else { panic!("a file") };
        let mut text = String::new();
        file.read_to_string(&mut text).expect("read");
        assert_eq!((text.as_str(), size), ("a\n", 2));
    }

    #[test]
    fn names_are_made_safe() {
        assert_eq!(decode("/a%20b+c"), "/a b+c");
        assert_eq!(decode("/a=b&c"), "/a=b&c");
        assert_eq!(encode("a b:<c>"), "./a%20b:%3Cc%3E");
        assert_eq!(escape("<a href=\"&\">"), "&lt;a href=&#34;&amp;&#34;&gt;");
    }
}
