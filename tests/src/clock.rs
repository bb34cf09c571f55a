//! Another wall clock for one running process. Programs ask the kernel's vDSO for the time; this overwrites
//! its `clock_gettime` in the memory of one process by one that asks the kernel and adds an offset, to the
//! wall clock only. The machine's clock and all other processes keep theirs, and so does the monotonic clock,
//! as with a real jump.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The wall clock of one process.
#[derive(Debug)]
pub struct Clock {
    pid: Pid,
    at: u64,
    code: std::ops::Range<u64>,
    original: Vec<u8>,
}

impl Clock {
    /// Why [`Clock::of`] gives none.
    pub const FIXED: &str = "the clock of a process cannot be moved here";

    /// `None` on processors other than x86-64, and when the function is too short to be replaced.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        if !cfg!(target_arch = "x86_64") {
            eprintln!("the clock can only be moved on x86-64");
            return None;
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("read the process's maps");
        let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let parse = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = (parse(start)?, parse(end)?);
        let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("open the process's memory");
        let mut image = vec![0; usize::try_from(end - start).ok()?];
        memory.read_exact_at(&mut image, start).expect("read the vDSO");
        let (offset, size) = function(&image, "__vdso_clock_gettime")?;
        let length = code(0).len();
        if size < length {
            eprintln!("the clock cannot be moved: clock_gettime has only {size} bytes");
            return None;
        }
        let original = image[offset..offset + length].to_vec();
        let pid = Pid::from_raw(i32::try_from(pid).ok()?);
        Some(Self { pid, at: start + offset as u64, code: start..end, original })
    }

    /// From now on the process's wall clock is so many seconds ahead of the machine's (or behind it); 0 puts
    /// it right again.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn shift(&self, seconds: i64) {
        let code = if seconds == 0 { self.original.clone() } else { code(seconds) };
        let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", self.pid));
        let memory = memory.expect("open the process's memory");
        for _ in 0..1000 {
            kill(self.pid, Signal::SIGSTOP).expect("stop the process");
            let quiet = self.is_outside();
            if quiet {
                memory.write_all_at(&code, self.at).expect("replace clock_gettime");
            }
            kill(self.pid, Signal::SIGCONT).expect("let the process go on");
            if quiet {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the process is in the vDSO all the time");
    }

    /// All threads have stopped, and none of them in the code that is about to change.
    fn is_outside(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        threads.flatten().all(|thread| {
            // The last word is where it goes on; "running" when it has not stopped yet.
            let call = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
            let at = call.trim().rsplit(' ').next().and_then(|word| word.strip_prefix("0x"));
            let at = at.and_then(|hex| u64::from_str_radix(hex, 16).ok());
            at.is_some_and(|at| !self.code.contains(&at))
        })
    }
}

/// `int clock_gettime(clockid_t edi, struct timespec *rsi)` with an offset for `CLOCK_REALTIME` and
/// `CLOCK_REALTIME_COARSE`.
fn code(seconds: i64) -> Vec<u8> {
    let mut code = vec![
        0xb8, 0xe4, 0, 0, 0, // mov eax, 228 (clock_gettime)
        0x0f, 0x05, // syscall
        0x85, 0xc0, // test eax, eax
        0x75, 22, // jnz end
        0x85, 0xff, // test edi, edi
        0x74, 5, // jz add
        0x83, 0xff, 5, // cmp edi, 5
        0x75, 13, // jne end
        0x48, 0xb9, // add: mov rcx, seconds
    ];
    code.extend(seconds.to_le_bytes());
    code.extend([0x48, 0x01, 0x0e]); // add [rsi], rcx
    code.push(0xc3); // end: ret
    code
}

/// Offset and size of a function of an ELF image (64 bits, little endian) that has its section headers.
fn function(image: &[u8], name: &str) -> Option<(usize, usize)> {
    let read = |at: usize, size: usize| {
        let bytes = image.get(at..at + size)?;
        bytes.iter().rev().try_fold(0_usize, |sum, byte| Some(sum << 8 | usize::from(*byte)))
    };
    let (sections, size, count) = (read(40, 8)?, read(58, 2)?, read(60, 2)?);
    let section = |number: usize| {
        let at = sections + number * size;
        Some((read(at + 4, 4)?, read(at + 24, 8)?, read(at + 32, 8)?, read(at + 40, 4)?))
    };
    for number in 0..count {
        let (kind, offset, length, link) = section(number)?;
        // SHT_DYNSYM
        if kind != 11 {
            continue;
        }
        let (_, strings, ..) = section(link)?;
        for at in (offset..offset + length).step_by(24) {
            let text = image.get(strings + read(at, 4)?..)?;
            if text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0) {
                return Some((read(at + 8, 8)?, read(at + 16, 8)?));
            }
        }
    }
    None
}
