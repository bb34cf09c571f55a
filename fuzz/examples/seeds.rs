//! Writes the seeds and findings of every target into `fuzz/corpus/TARGET`, where libFuzzer begins.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for target in kedge_fuzz::TARGETS {
        let corpus = here.join("corpus").join(target.name);
        std::fs::create_dir_all(&corpus)?;
        for (index, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{index}")), seed)?;
        }
        let Ok(findings) = std::fs::read_dir(here.join("findings").join(target.name)) else { continue };
        for finding in findings {
            let finding = finding?;
            std::fs::copy(finding.path(), corpus.join(finding.file_name()))?;
        }
    }
    Ok(())
}
