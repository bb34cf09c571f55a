//! `kedge images`: what is in this node's containerd.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use kedge_kubelet::{ImageInfo, ImportOptions};
use serde_json::json;

use super::require_root;
use crate::admin::block_on;
use crate::cli::ImagesCommand;
use crate::config::Config;
use crate::failure::{Failure, Remedied};
use crate::image_build;
use crate::output::{self, Step};

/// List, import, export, prune, build.
pub(crate) fn run(config: &Config, command: ImagesCommand) -> Result<ExitCode, Failure> {
    if let ImagesCommand::Build { file, binaries, .. } = &command {
        return build(file, binaries);
    }
    require_root()?;
    let socket = config.containerd_socket();
    if !socket.exists() {
        let what = format!("this node's containerd does not run ({} is missing)", socket.display());
        return Err(Remedied::new(what, "start it with kedge start").into());
    }
    match command {
        ImagesCommand::List { printed } => {
            let images = block_on(kedge_kubelet::describe_images(&socket))?.context("list images")?;
            super::print(printed.format, &table(&images), &images)?;
        }
        ImagesCommand::Import { files, .. } => {
            let mut all = Vec::new();
            let options = ImportOptions { work_dir: config.image_work_dir(), pin: false };
            for file in &files {
                let step = Step::begin(&format!("importing {}", file.display()));
                let imported = block_on(kedge_kubelet::import_images(&socket, file, &options))?
                    .with_context(|| format!("import {}", file.display()));
                all.extend(finish(step, "imported", imported)?);
            }
            output::report("imported", &json!({ "images": all }));
        }
        ImagesCommand::Export { file, names, .. } => {
            let step = Step::begin(&format!("exporting to {}", file.display()));
            let exported = block_on(kedge_kubelet::export_images(&socket, &file, &names))?
                .with_context(|| format!("export to {}", file.display()));
            let all = finish(step, "exported", exported)?;
            output::report("exported", &json!({ "images": all, "file": file }));
        }
        ImagesCommand::Prune { .. } => prune(&socket)?,
        ImagesCommand::Build { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn finish(step: Step, done: &str, result: anyhow::Result<Vec<String>>) -> Result<Vec<String>, Failure> {
    match result {
        Ok(names) => {
            step.done(&names.iter().map(|name| format!("{done} {name}")).collect::<Vec<_>>().join("\n"));
            Ok(names)
        }
        Err(error) => {
            step.abandon();
            Err(Failure::Failed(error))
        }
    }
}

fn prune(socket: &Path) -> Result<(), Failure> {
    let step = Step::begin("looking for images that nothing uses");
    let removed = block_on(kedge_kubelet::prune_images(socket, &image_build::names()))
        .and_then(|removed| Ok(removed.context("remove unused images")?));
    step.abandon();
    let removed = removed?;
    let mut short = String::new();
    for image in &removed {
        let names = if image.names.is_empty() { title(image).to_owned() } else { image.names.join(", ") };
        short.push_str(&format!("removed {names} ({})\n", crate::snapshot::size(image.size)));
    }
    if removed.is_empty() {
        short.push_str("nothing to remove: every image is used, pinned or Kedge's own\n");
    }
    output::confirm(short.trim_end());
    output::report("pruned", &json!({ "removed": removed }));
    Ok(())
}

fn build(file: &Path, binaries: &[PathBuf]) -> Result<ExitCode, Failure> {
    let step = Step::begin(&format!("building {}", file.display()));
    let all = finish(step, "built", image_build::build_for(binaries, file))?;
    output::report("built", &json!({ "images": all, "file": file }));
    Ok(ExitCode::SUCCESS)
}

/// The name that people know it by.
fn title(image: &ImageInfo) -> &str {
    image.names.first().or(image.digests.first()).unwrap_or(&image.id)
}

fn table(images: &[ImageInfo]) -> String {
    let mut rows = vec![["IMAGE", "DIGEST", "SIZE", ""].map(str::to_owned)];
    for image in images {
        let names: Vec<&str> = match image.names.as_slice() {
            [] => vec![title(image)],
            names => names.iter().map(String::as_str).collect(),
        };
        let marks = [(image.in_use, "in use"), (image.pinned, "pinned")];
        let marks: Vec<&str> = marks.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
        for name in names {
            let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
            let digest = image
                .digests
                .iter()
                .find_map(|digest| digest.strip_prefix(repository)?.strip_prefix('@'))
                .unwrap_or(&image.id);
            let short: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
            rows.push([name.to_owned(), short, crate::snapshot::size(image.size), marks.join(", ")]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (first, second, third) = (width(0), width(1), width(2));
    let line = |row: &[String; 4]| {
        let text = format!("{:first$}  {:second$}  {:>third$}  {}", row[0], row[1], row[2], row[3]);
        format!("{}\n", text.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_line_of_the_table() {
        let image = |names: &[&str], digests: &[&str], pinned: bool| ImageInfo {
            id: format!("sha256:{}", "f".repeat(64)),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            digests: digests.iter().map(|digest| (*digest).to_owned()).collect(),
            size: 3 << 20,
            pinned,
            in_use: pinned,
        };
        let images = [
            image(&["a.example/x:1", "a.example/x:2"], &["a.example/x@sha256:0123456789abcdef"], true),
            image(&[], &["b.example/y@sha256:aa"], false),
        ];
        let text = table(&images);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("a.example/x:1 ") && lines[1].ends_with("in use, pinned"), "{text}");
        assert!(lines[1].contains(" 0123456789ab "), "{text}");
        assert!(lines[3].starts_with("b.example/y@sha256:aa "), "{text}");
    }
}
