//! Queries of the kubelet's own API, for fuzz/.

/// What comes behind the question mark.
pub fn query(data: &[u8]) {
    let query = super::Query(form_urlencoded::parse(data).into_owned().collect());
    let _ = query.log_options();
    let _ = super::streams::ports(&query);
    let _ = (query.all("command"), query.flag("stdin"));
}
