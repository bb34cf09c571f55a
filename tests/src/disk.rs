//! A disk of its own for a folder, which can be made slow and full without harm to the machine's: an ext4
//! image on a loop device, throttled by the block I/O controller for one process (cgroup v1 or v2).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::run;

/// A mounted image; unmounted and forgotten when it is dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    device: String,
    number: String,
    folder: PathBuf,
    group: Option<PathBuf>,
}

impl Disk {
    /// Why [`Disk::mount`] gives none.
    pub const NONE: &str = "no loop device or no ext4 here";
    /// Why [`Disk::slow`] does nothing.
    pub const NOT_SLOW: &str = "no block I/O controller here that slows a disk";

    /// Mounts `megabytes` at `folder`, which is made. `None` where there are no loop devices or no ext4.
    #[must_use]
    pub fn mount(folder: &Path, megabytes: u64) -> Option<Self> {
        let image = folder.with_extension("disk");
        fs::create_dir_all(folder).ok()?;
        fs::File::create(&image).ok()?.set_len(megabytes << 20).ok()?;
        let path = image.display().to_string();
        let done = |command: &mut Command| {
            let out = run(command, b"");
            if out.code != 0 {
                eprintln!("no disk of its own: {out}");
            }
            (out.code == 0).then(|| out.stdout.trim().to_owned())
        };
        // A journal is written by the kernel and not by the process that is throttled.
        done(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^has_journal", "-m", "0", &path]))?;
        let device = done(Command::new("losetup").args(["-f", "--show", &path]))?;
        let name = device.trim_start_matches("/dev/");
        let number =
            fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap_or_default().trim().to_owned();
        let disk = Self { image, device, number, folder: folder.to_owned(), group: None };
        done(Command::new("mount").arg(&disk.device).arg(folder))?;
        let _ = fs::remove_dir(folder.join("lost+found"));
        Some(disk)
    }

    /// Lets a process write only so many times a second (a flush takes about three); `None` lifts that.
    /// False where no block I/O controller can do that.
    pub fn slow(&mut self, pid: u32, writes: Option<u32>) -> bool {
        let version1 = Path::new("/sys/fs/cgroup/blkio");
        let (base, file) = if version1.exists() {
            (version1, "blkio.throttle.write_iops_device")
        } else {
            (Path::new("/sys/fs/cgroup"), "io.max")
        };
        let group = base.join(format!("kedge-test-{}", std::process::id()));
        let made = fs::create_dir(&group).is_ok() || group.exists();
        self.group = made.then(|| group.clone());
        let line = match (file, writes) {
            ("io.max", Some(writes)) => format!("{} wiops={writes}", self.number),
            ("io.max", None) => format!("{} wiops=max", self.number),
            (_, writes) => format!("{} {}", self.number, writes.unwrap_or(0)),
        };
        if file == "io.max" {
            let _ = fs::write(base.join("cgroup.subtree_control"), "+io");
        }
        let limited = fs::write(group.join(file), line);
        let moved = fs::write(group.join("cgroup.procs"), pid.to_string());
        if let Some(error) = limited.as_ref().err().or(moved.as_ref().err()) {
            eprintln!("the disk cannot be made slow here: {error}");
        }
        limited.is_ok() && moved.is_ok()
    }

    /// Takes all space that is left.
    ///
    /// # Panics
    /// When the file cannot be made.
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.folder.join("filler")).expect("make the filler");
        for size in [1 << 20, 1 << 12] {
            let block = vec![1; size];
            while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
        }
    }

    /// Gives the space back.
    ///
    /// # Panics
    /// When the file cannot be removed.
    pub fn free(&self) {
        fs::remove_file(self.folder.join("filler")).expect("remove the filler");
    }

    /// Takes it away; the node that used it must have ended.
    pub fn unmount(self) {}
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.folder, nix::mount::MntFlags::MNT_DETACH);
        let _ = run(Command::new("losetup").args(["-d", &self.device]), b"");
        let _ = fs::remove_file(&self.image);
        if let Some(group) = &self.group {
            // What still runs in there (containerd, started by the node) goes back to where all are.
            let base = group.parent().map(|base| base.join("cgroup.procs"));
            if let (Ok(pids), Some(base)) = (fs::read_to_string(group.join("cgroup.procs")), base) {
                for pid in pids.lines() {
                    let _ = fs::write(&base, pid);
                }
            }
            let _ = fs::remove_dir(group);
        }
    }
}
