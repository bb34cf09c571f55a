//! A number, or a part of a whole: the fields that are int-or-string (apimachinery `intstr`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A number, or a part of `total` rounded up or down. A value that is neither counts as zero: the
/// API server refuses it.
pub(crate) fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(value)) => *value,
        Some(IntOrString::String(text)) => {
            let Some(percent) = text.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()) else { return 0 };
            let product = percent * i64::from(total);
            let part = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(part).unwrap_or(i32::MAX)
        }
    }
}
