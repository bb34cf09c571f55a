//! The `kedge` binary: one static file that is the command line, the whole node and the content of
//! Kedge's own images.
//!
//! `main` reads as the story of a call: by which name were we called, what is asked, do it, and with
//! which exit code do we leave (0 done, 1 failed, 2 wrong usage).

mod addons;
mod admin;
mod cli;
mod commands;
mod config;
mod control;
mod dns;
mod failure;
mod hello;
mod image_build;
mod inspect;
mod kubeconfig;
mod log;
mod memory;
mod metrics;
mod node;
mod node_status;
mod origin;
mod output;
mod pause;
mod pod;
mod preflight;
mod process;
mod reference;
mod service;
mod snapshot;
mod status;
mod storage;
mod switch;
mod upgrade;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Inside an image and behind a link, the name says what to do.
    let name = called_as(&arguments).to_owned();
    match name.as_str() {
        "pause" | "kedge-pause" => pause::run(),
        "hello" | "kedge-hello" => hello::run(std::env::args().nth(1)),
        "kubectl" | "kedge-kubectl" => {
            finish(commands::kubectl::run_bare(arguments.into_iter().skip(1).collect()))
        }
        _ => finish(commands::run(arguments)),
    }
}

fn called_as(arguments: &[OsString]) -> &str {
    arguments
        .first()
        .map(Path::new)
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .unwrap_or("kedge")
}

/// Says what went wrong, with everything that caused it.
fn finish(result: Result<ExitCode, failure::Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) => {
            let code = failure.exit_code();
            let error = failure.into_error();
            output::fail(&failure::text(&error), failure::remedy(&error).as_deref());
            code
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_call_is_the_last_part_of_the_path() {
        for (argument, name) in
            [("/usr/local/bin/kedge", "kedge"), ("pause", "pause"), ("/bin/hello", "hello")]
        {
            assert_eq!(called_as(&[OsString::from(argument)]), name);
        }
        assert_eq!(called_as(&[]), "kedge");
    }
}
