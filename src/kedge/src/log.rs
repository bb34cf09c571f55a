//! What a process of Kedge says of itself while it runs.

use tracing_subscriber::EnvFilter;

/// hickory logs every answer at INFO.
const USUAL_LOG: &str = "info,hickory_server=warn,hickory_net=warn";

/// `KEDGE_LOG` takes tracing's directives, e.g. `info,kedge_kubelet=debug`; JSON with
/// `KEDGE_LOG_FORMAT=json`.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("KEDGE_LOG").unwrap_or_else(|_| EnvFilter::new(USUAL_LOG));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if std::env::var("KEDGE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal has its own time.
        builder.without_time().init();
    } else {
        builder.init();
    }
}
