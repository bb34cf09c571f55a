//! Every target with what once found a fault, with its seeds, and with mutations of both. No input may panic,
//! hold more memory than its size warrants, or take long.
//!
//! `KEDGE_FUZZ_SECONDS` (of processor time, for each target; 1), `KEDGE_FUZZ_SEED` (0) and
//! `KEDGE_FUZZ_TARGETS` (names, with commas) change the run. With `KEDGE_FUZZ_LAST=FILE` each input is written
//! there before it is run: what is in it after the process has died is the input that killed it.

#![expect(clippy::print_stdout, reason = "how much was tried is worth knowing")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kedge_fuzz::{Mutator, TARGETS, Target};
use nix::time::{ClockId, clock_gettime};

/// What any input may take, in bytes, and for each of its bytes beside that.
const MEMORY: usize = 64 << 20;
const MEMORY_PER_BYTE: usize = 1 << 10;
/// What any input may take of the processor's time. Most take some microseconds; builds without optimisation
/// and processors of small boards are slow.
const TIME: Duration = Duration::from_secs(5);

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what this thread holds.
struct Counting;

fn count(more: usize, less: usize) {
    let held = HELD.get().wrapping_add(more).wrapping_sub(less);
    HELD.set(held);
    // What was allocated before the count began and is freed now makes it negative.
    if held < usize::MAX / 2 && held > MOST.get() {
        MOST.set(held);
    }
}

// SAFETY: everything is passed on to the system's allocator as it came.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The processor's time that this thread has had: a busy machine does not make it longer.
fn spent() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the thread's clock").into()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The fault that an input shows, if any.
fn fault(target: &Target, input: &[u8]) -> Option<String> {
    let (before, start) = (HELD.get(), spent());
    MOST.set(before);
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (memory, time) = (MOST.get().saturating_sub(before), spent() - start);
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        return Some(format!("panicked: {text}"));
    }
    if memory > MEMORY + MEMORY_PER_BYTE * input.len() {
        return Some(format!("held {memory} bytes"));
    }
    (time > TIME).then(|| format!("took {time:?}"))
}

/// Takes parts away as long as the same kind of fault remains.
fn smallest(target: &Target, input: Vec<u8>) -> Vec<u8> {
    let mut input = input;
    let mut part = (input.len() / 2).max(1);
    let deadline = spent() + Duration::from_secs(20);
    loop {
        let mut at = 0;
        while at < input.len() && spent() < deadline {
            let mut less = input.clone();
            less.drain(at..(at + part).min(less.len()));
            if fault(target, &less).is_some() { input = less } else { at += part }
        }
        if part == 1 || spent() > deadline {
            return input;
        }
        part /= 2;
    }
}

fn findings(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings").join(target.name);
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("readable");
            (path, bytes)
        })
        .collect()
}

fn drive(target: &Target) -> Result<u64, String> {
    let last = std::env::var_os("KEDGE_FUZZ_LAST");
    let check = |input: &[u8], what: &dyn Fn() -> String| {
        if let Some(last) = &last {
            std::fs::write(last, input).expect("written");
        }
        let Some(fault) = fault(target, input) else { return Ok(()) };
        let small = smallest(target, input.to_vec());
        let text = small.escape_ascii().to_string();
        let file = std::env::temp_dir().join(format!("kedge-fuzz-{}", target.name));
        std::fs::write(&file, &small).expect("written");
        let text: String = text.chars().take(2000).collect();
        Err(format!(
            "{} {fault}\n  with {}\n  smallest ({} bytes, in {}): {text}",
            target.name,
            what(),
            small.len(),
            file.display()
        ))
    };
    // What is set up at first use is not the input's.
    let _ = catch_unwind(AssertUnwindSafe(|| (target.run)(b"")));
    let mut seeds = Vec::new();
    for (path, bytes) in findings(target) {
        check(&bytes, &|| path.display().to_string())?;
        seeds.push(bytes);
    }
    for (index, seed) in (target.seeds)().into_iter().enumerate() {
        let _ = catch_unwind(AssertUnwindSafe(|| (target.run)(&seed)));
        check(&seed, &|| format!("seed {index}"))?;
        seeds.push(seed);
    }
    let seed = number("KEDGE_FUZZ_SEED", 0);
    let deadline = spent() + Duration::from_secs(number("KEDGE_FUZZ_SECONDS", 1));
    let mut mutator = Mutator::new(seed, seeds, target.words);
    let mut runs = 0;
    while spent() < deadline {
        let input = mutator.next_input();
        check(&input, &|| format!("input {runs} of KEDGE_FUZZ_SEED={seed}"))?;
        runs += 1;
    }
    Ok(runs)
}

#[test]
fn no_input_does_harm() {
    let only = std::env::var("KEDGE_FUZZ_TARGETS").ok();
    let chosen: Vec<&Target> = TARGETS
        .iter()
        .filter(|target| only.as_deref().is_none_or(|names| names.split(',').any(|name| name == target.name)))
        .collect();
    assert!(!chosen.is_empty(), "KEDGE_FUZZ_TARGETS names no target");
    // Small stacks show what recurses without a limit; the real ones are as large (tokio's: 2 MiB).
    let queue = std::sync::Mutex::new(chosen.into_iter());
    let faults = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            std::thread::Builder::new()
                .stack_size(2 << 20)
                .spawn_scoped(scope, || {
                    while let Some(target) = { queue.lock().expect("lock").next() } {
                        match drive(target) {
                            Ok(runs) => println!("{}: {runs} inputs", target.name),
                            Err(fault) => faults.lock().expect("lock").push(fault),
                        }
                    }
                })
                .expect("a thread");
        }
    });
    let faults = faults.into_inner().expect("lock");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
