//! Follows a collection of one kind by a watch that begins with all objects ("streaming list") and is taken
//! up again wherever it ends. It knows objects as text only: what decodes and keeps them is a [`Sink`], so
//! this is compiled once and not for every kind.

use std::borrow::Cow;
use std::time::Duration;

use futures::AsyncBufReadExt as _;
use http::{HeaderValue, header};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_base::{Backoff, Chain};
use kube::core::params::WatchParams;
use kube::core::{Request, Status};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Error;

/// The server is asked to end a watch after 290 s (kube's default) and sends bookmarks meanwhile: a
/// connection that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(295);
/// A watch that ends sooner without any event counts as failed.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// Takes what a watch tells, in order. `begin`, any number of `listed` and `done` replace everything.
pub(crate) trait Sink: Send {
    fn begin(&mut self);
    /// # Errors
    /// The object cannot be decoded.
    fn listed(&mut self, object: &str) -> serde_json::Result<()>;
    fn done(&mut self);
    /// A new or changed object. Returns its resource version.
    ///
    /// # Errors
    /// The object cannot be decoded.
    fn apply(&mut self, object: &str) -> serde_json::Result<Option<String>>;
    /// An object's last state. Returns the resource version of its end.
    ///
    /// # Errors
    /// The object cannot be decoded.
    fn delete(&mut self, object: &str) -> serde_json::Result<Option<String>>;
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Mark {
    metadata: ObjectMeta,
}

/// Of an object only its version: the rest is passed over.
#[derive(Deserialize)]
struct Versioned {
    metadata: Version,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    resource_version: Option<String>,
}

/// The resource version of an object.
///
/// # Errors
/// It is no object.
pub(crate) fn version(object: &str) -> serde_json::Result<Option<String>> {
    serde_json::from_str::<Versioned>(object).map(|object| object.metadata.resource_version)
}

/// Where the watch goes on.
enum Place {
    /// All objects are to be told first.
    Start,
    /// They are being told.
    Listing,
    /// Everything up to this version was told.
    After(String),
}

struct Follow<'a> {
    place: Place,
    backoff: Backoff,
    /// For messages.
    kind: &'a str,
    params: WatchParams,
    sink: &'a mut dyn Sink,
}

/// Follows the collection at `path` until it is dropped. `params` are the selectors.
pub(crate) async fn follow(
    client: kube::Client,
    path: String,
    params: WatchParams,
    kind: String,
    mut sink: Box<dyn Sink>,
) {
    let backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
    let mut follow = Follow { place: Place::Start, backoff, kind: &kind, params, sink: &mut *sink };
    let request = Request::new(path);
    loop {
        let begin = tokio::time::Instant::now();
        let mut heard = false;
        match follow.watch(&client, &request, &mut heard).await {
            Ok(()) if heard || begin.elapsed() > TOO_SHORT => continue,
            Ok(()) => tracing::debug!(kind, "watch ended at once"),
            Err(error) => {
                if error.code() == Some(410) {
                    follow.place = Place::Start;
                }
                tracing::debug!(kind, error = %Chain(&error), "watch interrupted, it is resumed");
            }
        }
        tokio::time::sleep(follow.backoff.next_delay()).await;
    }
}

impl Follow<'_> {
    /// One watch, until the server ends it.
    async fn watch(
        &mut self,
        client: &kube::Client,
        request: &Request,
        heard: &mut bool,
    ) -> Result<(), Error> {
        let mut params = WatchParams { bookmarks: true, ..self.params.clone() };
        let mut version = "0";
        if let Place::After(told) = &self.place {
            version = told;
        } else {
            params.send_initial_events = true;
        }
        let mut request = request.watch(&params, version).map_err(kube::Error::BuildRequest)?;
        // Lines come one by one; a compressed stream of them would not.
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut lines = std::pin::pin!(client.request_stream(request).await?);
        if !matches!(self.place, Place::After(_)) {
            self.place = Place::Listing;
            self.sink.begin();
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = tokio::time::timeout(SILENCE, lines.read_until(b'\n', &mut line)).await;
            let read = read.map_err(|_| Error::other("the watch was silent for too long"))?;
            let read = read.map_err(|error| Error::other(format!("read the watch: {}", Chain(&error))))?;
            if read == 0 || line.last() != Some(&b'\n') {
                // The end; what is left of a line will be told again.
                return Ok(());
            }
            let text =
                std::str::from_utf8(&line).map_err(|_| Error::other("the watch sent other than text"))?;
            if text.trim().is_empty() {
                continue;
            }
            self.tell(text)?;
            *heard = true;
            self.backoff.reset();
        }
    }

    fn tell(&mut self, text: &str) -> Result<(), Error> {
        let bad =
            |error: serde_json::Error| Error::other(format!("the watch sent what is no event: {error}"));
        let line: Line<'_> = serde_json::from_str(text).map_err(bad)?;
        let object = line.object.get();
        let listing = !matches!(self.place, Place::After(_));
        let told = match &*line.kind {
            "ADDED" | "MODIFIED" if listing => self.sink.listed(object).map(|()| None),
            "ADDED" | "MODIFIED" => self.sink.apply(object),
            // Upstream says that there are none while the list is told.
            "DELETED" if listing => Ok(None),
            "DELETED" => self.sink.delete(object),
            "BOOKMARK" => {
                let mark: Mark = serde_json::from_str(object).map_err(bad)?;
                let metadata = mark.metadata;
                let complete = || metadata.annotations.as_ref()?.get("k8s.io/initial-events-end");
                if listing && complete().is_none() {
                    return Ok(());
                }
                if listing {
                    self.sink.done();
                }
                Ok(metadata.resource_version)
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(object).map_err(bad)?;
                return Err(kube::Error::Api(status.boxed()).into());
            }
            _ => Ok(None),
        };
        match told {
            Ok(Some(version)) => self.place = Place::After(version),
            Ok(None) => {}
            // One object that this version does not understand must not keep the others away.
            Err(error) => tracing::warn!(kind = self.kind, %error, "object not understood, it is left out"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Arc;

    use http::Response;
    use http_body_util::Full;
    use parking_lot::Mutex;

    struct Log(Arc<Mutex<Vec<String>>>);

    impl Sink for Log {
        fn begin(&mut self) {
            self.0.lock().push("begin".into());
        }
        fn listed(&mut self, object: &str) -> serde_json::Result<()> {
            let version = version(object)?;
            self.0.lock().push(format!("listed {}", version.unwrap_or_default()));
            Ok(())
        }
        fn done(&mut self) {
            self.0.lock().push("done".into());
        }
        fn apply(&mut self, object: &str) -> serde_json::Result<Option<String>> {
            let version = version(object)?;
            self.0.lock().push(format!("apply {}", version.clone().unwrap_or_default()));
            Ok(version)
        }
        fn delete(&mut self, object: &str) -> serde_json::Result<Option<String>> {
            let version = version(object)?;
            self.0.lock().push(format!("delete {}", version.clone().unwrap_or_default()));
            Ok(version)
        }
    }

    fn line(kind: &str, version: &str) -> String {
        format!("{{\"type\":\"{kind}\",\"object\":{{\"metadata\":{{\"resourceVersion\":\"{version}\"}}}}}}\n")
    }

    const COMPLETE: &str = "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"5\",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}}}}\n";

    /// What is asked of a server that gives these answers one after the other, and what the sink hears.
    async fn run(answers: Vec<(u16, String)>) -> (Vec<String>, Vec<String>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (ended, mut end) = tokio::sync::mpsc::channel::<()>(1);
        let (answers, log) = (Arc::new(Mutex::new(VecDeque::from(answers))), asked.clone());
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let next = answers.lock().pop_front();
            let (log, ended) = (log.clone(), ended.clone());
            async move {
                let Some((code, text)) = next else {
                    let _ = ended.send(()).await;
                    return std::future::pending().await;
                };
                log.lock().push(request.uri().query().unwrap_or_default().to_owned());
                let mut response = Response::new(Full::new(bytes::Bytes::from(text)));
                *response.status_mut() = http::StatusCode::from_u16(code).expect("a status");
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let client = kube::Client::new(service, "default");
        let sink = Box::new(Log(heard.clone()));
        let params = WatchParams::default().fields("spec.nodeName=n");
        let follow = follow(client, "/api/v1/pods".into(), params, "Pod".into(), sink);
        tokio::select! {
            () = follow => {}
            _ = end.recv() => {}
        }
        let (asked, heard) = (asked.lock().clone(), heard.lock().clone());
        (asked, heard)
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_goes_on_where_it_ended() {
        let first = [&*line("ADDED", "3"), COMPLETE, &*line("MODIFIED", "7"), "{\"type\":\"ADDED\""].concat();
        let second = [line("DELETED", "9"), line("BOOKMARK", "20")].concat();
        let (asked, heard) = run(vec![(200, first), (200, second), (200, String::new())]).await;
        assert_eq!(heard, ["begin", "listed 3", "done", "apply 7", "delete 9"]);
        assert!(
            asked[0].contains("sendInitialEvents=true") && asked[0].contains("resourceVersion=0"),
            "{asked:?}"
        );
        assert!(asked[0].contains("fieldSelector=spec.nodeName%3Dn"), "{asked:?}");
        assert!(
            asked[1].contains("resourceVersion=7") && !asked[1].contains("sendInitialEvents"),
            "{asked:?}"
        );
        assert!(asked[2].contains("resourceVersion=20"), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_or_was_cut_off_begins_anew() {
        let gone = "{\"type\":\"ERROR\",\"object\":{\"code\":410,\"reason\":\"Expired\",\"status\":\"Failure\",\"message\":\"too old\"}}\n";
        let refused = "{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\",\"status\":\"Failure\",\"message\":\"too old\"}";
        let list = [&*line("ADDED", "3"), COMPLETE].concat();
        let (asked, heard) = run(vec![
            (200, line("ADDED", "1")),
            (200, list.clone()),
            (200, gone.to_owned()),
            (200, list),
            (410, refused.to_owned()),
            (200, "no event\n".to_owned()),
        ])
        .await;
        assert_eq!(
            heard,
            ["begin", "listed 1", "begin", "listed 3", "done", "begin", "listed 3", "done", "begin"]
        );
        let whole: Vec<bool> = asked.iter().map(|query| query.contains("sendInitialEvents=true")).collect();
        assert_eq!(whole, [true, true, false, true, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_not_understood_does_not_keep_the_others_away() {
        let odd = "{\"type\":\"ADDED\",\"object\":{\"metadata\":7}}\n";
        let text = [odd, COMPLETE, odd, &*line("ADDED", "8")].concat();
        let (_, heard) = run(vec![(200, text)]).await;
        assert_eq!(heard, ["begin", "done", "apply 8"]);
    }
}
