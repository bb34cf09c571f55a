//! `kedge certs check` and `rotate`; `rotate-ca` is a module of its own.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use kedge_cluster::{Admitted, CertificateStatus, Leaf, Role, certificates};

use serde::Serialize;

use super::{authority, print, require_root};
use crate::cli::{CertsCommand, Format};
use crate::config::Config;
use crate::control::{self, CallError};
use crate::failure::{Failure, Remedied};
use crate::node::authority::AuthorityStatus;
use crate::node::{self, shared};
use crate::output::{self, Step};

/// On a worker others sign.
const SIGNED: Duration = Duration::from_secs(120);

/// Check or rotate.
pub(crate) fn run(config: &Config, command: &CertsCommand) -> Result<ExitCode, Failure> {
    require_root()?;
    match command {
        CertsCommand::Check { printed } => {
            let found = show(config, printed.format)?;
            let expired = found.iter().any(|certificate| certificate.days_left < 0);
            Ok(if expired { ExitCode::from(1) } else { ExitCode::SUCCESS })
        }
        CertsCommand::RotateCa(args) => authority::run(config, args),
        CertsCommand::Rotate { .. } => {
            let step = Step::begin("issuing certificates");
            let answer =
                control::call::<Vec<Leaf>>(&config.status_socket(), "POST", "/certs/rotate", &(), SIGNED);
            let done = match answer {
                Ok(_) => Ok(()),
                Err(CallError::NotRunning) => offline(config),
                Err(error) => Err(anyhow::Error::from(error).context("rotate the certificates")),
            };
            step.abandon();
            done?;
            let found = read(config)?;
            output::confirm(table(&found).trim_end());
            output::report("rotated", &serde_json::json!({ "certificates": found }));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn offline(config: &Config) -> anyhow::Result<()> {
    let mut config = config.clone();
    crate::switch::finish(&mut config)?;
    if let Some(joined) = Admitted::read(&config.pki_dir())? {
        anyhow::ensure!(
            joined.facts.role == Role::ControlPlane,
            "a worker's certificates are signed by the control plane: start it with kedge start first"
        );
        shared::adopt(&mut config, &joined.config)?;
    }
    if !config.pki_dir().join("ca.key").exists() {
        let what = format!("there is no cluster in {} yet", config.data_dir.display());
        return Err(Remedied::new(what, "run kedge install").into());
    }
    let pki = node::open_pki(&config, &node::addresses(&config)?, Role::ControlPlane)?;
    pki.rotate(&Leaf::ALL).context("issue the certificates")?;
    crate::kubeconfig::write(&config)
}

fn read(config: &Config) -> anyhow::Result<Vec<CertificateStatus>> {
    certificates(&config.pki_dir(), Timestamp::now())
        .context("read the certificates; is there a cluster on this node? (kedge install)")
}

/// A certificate, and with the authority's whether another one is taking its place.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    certificate: &'a CertificateStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<AuthorityStatus>,
}

fn show(config: &Config, format: Format) -> anyhow::Result<Vec<CertificateStatus>> {
    let found = read(config)?;
    let replacement = authority::under_way(config)?;
    let mut text = table(&found);
    if let Some(status) = &replacement {
        text.push_str(&format!("\n{}\n", authority::line(status)));
    }
    let listed = |certificate| Listed {
        certificate,
        replacement: replacement.clone().filter(|_| certificate.name == "ca"),
    };
    print(format, &text, &found.iter().map(listed).collect::<Vec<_>>())?;
    Ok(found)
}

fn table(found: &[CertificateStatus]) -> String {
    let mut text = format!(
        "{:24}  {:20}  {:>6}  {:20}  SUBJECT\n",
        "CERTIFICATE", "EXPIRES", "DAYS", "RENEWED BY ITSELF"
    );
    for certificate in found {
        let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let renews = certificate.renews.map_or_else(|| "- (authority)".to_owned(), time);
        text.push_str(&format!(
            "{:24}  {:20}  {:>6}  {renews:20}  {}\n",
            certificate.name,
            time(certificate.expires),
            if certificate.days_left < 0 { "EXPIRED".to_owned() } else { certificate.days_left.to_string() },
            certificate.subject
        ));
    }
    text
}
