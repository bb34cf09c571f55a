//! Programs and what they answered.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a program answered.
#[derive(Debug, Clone)]
pub struct Out {
    /// The call, for messages.
    pub call: String,
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Out {
    /// Asserts success and gives standard output.
    ///
    /// # Panics
    /// When the exit code is not 0.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "{self}");
        self.stdout
    }

    /// Asserts failure with `code` and gives standard error.
    ///
    /// # Panics
    /// When the exit code is another.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert!(self.code == code, "expected exit code {code}\n{self}");
        self.stderr
    }

    /// Asserts success and parses standard output as JSON.
    ///
    /// # Panics
    /// When it failed or did not print JSON.
    #[track_caller]
    #[must_use]
    pub fn json(self) -> Value {
        let call = self.call.clone();
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{call}: {error}:\n{text}"))
    }
}

impl fmt::Display for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} exited with {}\nstdout:\n{}\nstderr:\n{}",
            self.call, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs a program to its end with `input` on standard input.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Out {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word: &OsStr| word.to_string_lossy().into_owned())
        .collect();
    let call = words.join(" ");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("start {call}: {error}"));
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    // The program may answer before it has read everything, and may end without reading at all.
    let writer = std::thread::spawn({
        let input = input.to_vec();
        move || {
            let _ = stdin.write_all(&input);
        }
    });
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("wait for {call}: {error}"));
    let _ = writer.join();
    Out {
        call,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The release binary under test.
///
/// # Panics
/// When `KEDGE_BINARY` does not name a file.
#[must_use]
pub fn kedge_binary() -> PathBuf {
    let path = std::env::var_os("KEDGE_BINARY")
        .map(PathBuf::from)
        .expect("KEDGE_BINARY must name the kedge binary to test; ./test.sh sets it");
    assert!(path.is_file(), "KEDGE_BINARY: {} is not a file", path.display());
    path
}

/// The kubectl to test with.
#[must_use]
pub fn kubectl_program() -> PathBuf {
    std::env::var_os("KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from)
}
