//! What a client may ask of a container's log (`ValidatePodLogOptions`).

use kedge_api::field::FieldError;
use kedge_api::status::Status;

use crate::request::Query;

/// Refuses what cannot be; what is no number at all the kubelet refuses.
pub(crate) fn check(query: &Query, pod: &str) -> Result<(), Status> {
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<i64>().ok());
    let mut errors = Vec::new();
    if let Some(lines) = number("tailLines").filter(|lines| *lines < 0) {
        errors.push(FieldError::invalid("tailLines", lines, "must be greater than or equal to 0"));
    }
    if let Some(bytes) = number("limitBytes").filter(|bytes| *bytes < 1) {
        errors.push(FieldError::invalid("limitBytes", bytes, "must be greater than 0"));
    }
    let seconds = number("sinceSeconds");
    if seconds.is_some() && query.get("sinceTime").is_some() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(FieldError::forbidden("", why));
    } else if let Some(seconds) = seconds.filter(|seconds| *seconds < 1) {
        errors.push(FieldError::invalid("sinceSeconds", seconds, "must be greater than 0"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", pod, errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be() {
        let told = |text: &str| {
            check(&Query::parse(&format!("/?{text}").parse().expect("a URI")), "p")
                .err()
                .map(|status| status.message)
        };
        for good in ["", "tailLines=0&limitBytes=1&sinceSeconds=5", "sinceTime=2026-01-01T00:00:00Z"] {
            assert_eq!(told(good), None, "{good}");
        }
        for (bad, wanted) in [
            ("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes=0", "limitBytes: Invalid value: 0: must be greater than 0"),
            ("sinceSeconds=0", "sinceSeconds: Invalid value: 0: must be greater than 0"),
            (
                "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
                ": Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
            ),
        ] {
            assert_eq!(told(bad), Some(format!("PodLogOptions \"p\" is invalid: {wanted}")), "{bad}");
        }
    }
}
