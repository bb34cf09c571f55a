//! Waits until files of one folder were completely written, moved in or out, or removed (inotify). It looks
//! at names only and reads no file. Folders below it are not watched.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// What happened since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// These names were completed or removed; which of both, the folder says.
    Files(BTreeSet<OsString>),
    /// More than the kernel could remember: look at every file.
    Everything,
}

/// A watched folder.
pub struct FolderWatch {
    folder: PathBuf,
    events: AsyncFd<Events>,
}

struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl FolderWatch {
    /// Watches from now on. Begin before you list the folder, so that nothing falls in between. Needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// When it is no folder, or the user's inotify limits are used up.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(folder, flags)?;
        #[expect(deprecated, reason = "its successor is unsafe; the descriptor is owned")]
        let events = AsyncFd::new(Events(inotify))?;
        Ok(Self { folder: folder.to_owned(), events })
    }

    /// [`FolderWatch::changed`] for one who has something to do again after `limit`: no name was changed then.
    ///
    /// # Errors
    /// As that.
    pub async fn changed_within(&mut self, limit: Duration) -> io::Result<Changed> {
        match tokio::time::timeout(limit, self.changed()).await {
            Ok(changed) => changed,
            Err(_) => Ok(Changed::Files(BTreeSet::new())),
        }
    }

    /// Waits for the next change.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when the folder itself is gone: make it again and watch anew.
    pub async fn changed(&mut self) -> io::Result<Changed> {
        loop {
            let mut ready = self.events.readable_mut().await?;
            let events = match ready.get_inner().0.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut names = BTreeSet::new();
            for event in events {
                let is = |flags: AddWatchFlags| event.mask.intersects(flags);
                if is(AddWatchFlags::IN_Q_OVERFLOW) {
                    return Ok(Changed::Everything);
                }
                if is(AddWatchFlags::IN_DELETE_SELF
                    | AddWatchFlags::IN_MOVE_SELF
                    | AddWatchFlags::IN_IGNORED
                    | AddWatchFlags::IN_UNMOUNT)
                {
                    let what = format!("{} was removed", self.folder.display());
                    return Err(io::Error::new(io::ErrorKind::NotFound, what));
                }
                let Some(name) = event.name else { continue };
                // A new file is empty yet; a new link is complete, and no other event follows.
                if !is(AddWatchFlags::IN_CREATE) || is_link(&self.folder.join(&name)) {
                    names.insert(name);
                }
            }
            if !names.is_empty() {
                return Ok(Changed::Files(names));
            }
        }
    }
}

fn is_link(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    path.symlink_metadata().is_ok_and(|meta| meta.is_symlink() || (meta.is_file() && meta.nlink() > 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;

    async fn next(watch: &mut FolderWatch) -> Vec<String> {
        match watch.changed().await.unwrap() {
            Changed::Files(names) => names.iter().map(|name| name.to_string_lossy().into_owned()).collect(),
            Changed::Everything => panic!("nothing overflowed"),
        }
    }

    #[tokio::test]
    async fn files_are_reported_when_they_are_complete_and_when_they_go() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        let mut watch = FolderWatch::new(dir.path()).unwrap();

        let mut half = fs::File::create(dir.path().join("half")).unwrap();
        half.write_all(b"first ").unwrap();
        fs::write(dir.path().join("whole"), "x").unwrap();
        assert_eq!(next(&mut watch).await, ["whole"], "the other one is still being written");
        half.write_all(b"second").unwrap();
        drop(half);
        assert_eq!(next(&mut watch).await, ["half"]);

        fs::write(other.path().join("moved"), "x").unwrap();
        fs::rename(other.path().join("moved"), dir.path().join("moved")).unwrap();
        assert_eq!(next(&mut watch).await, ["moved"]);
        std::os::unix::fs::symlink("whole", dir.path().join("link")).unwrap();
        assert_eq!(next(&mut watch).await, ["link"]);
        fs::remove_file(dir.path().join("whole")).unwrap();
        assert_eq!(next(&mut watch).await, ["whole"]);

        fs::remove_dir_all(dir.path()).unwrap();
        let error = loop {
            match watch.changed().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(FolderWatch::new(dir.path()).is_err());
    }
}
