//! The functions that expressions can call: those of the language and of the libraries that a Kubernetes 1.36
//! API server has (apiserver `pkg/cel/environment/base.go`).

use super::formats;
use super::images;
use super::lists;
use super::meter::Meter;
use super::network;
use super::operators;
use super::text;
use super::time;
use super::value::Value;
use super::versions;
use super::{Outcome, authz};

/// What a call does.
pub(super) type Function = fn(&mut Meter, &[Value]) -> Outcome;

/// How a function is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `f(x)`
    Global,
    /// `x.f()`
    Member,
    Both,
}

/// One function.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    style: Style,
    /// It costs one; the others count for themselves.
    pub(super) flat: bool,
    pub(super) function: Function,
}

const fn flat(name: &'static str, style: Style, function: Function) -> Entry {
    Entry { name, style, flat: true, function }
}

const fn own(name: &'static str, style: Style, function: Function) -> Entry {
    Entry { name, style, flat: false, function }
}

use Style::{Both, Global, Member};

static FUNCTIONS: &[Entry] = &[
    // Operators.
    own("_+_", Global, operators::add),
    flat("_-_", Global, operators::sub),
    flat("_*_", Global, operators::multiply),
    flat("_/_", Global, operators::divide),
    flat("_%_", Global, operators::modulo),
    flat("-_", Global, operators::negate),
    flat("!_", Global, operators::not),
    own("_==_", Global, operators::equals),
    own("_!=_", Global, operators::not_equals),
    own("_<_", Global, operators::less),
    own("_<=_", Global, operators::less_equals),
    own("_>_", Global, operators::greater),
    own("_>=_", Global, operators::greater_equals),
    own("@in", Global, operators::is_in),
    // Conversions and sizes.
    flat("size", Both, operators::size),
    flat("int", Global, operators::to_int),
    flat("uint", Global, operators::to_uint),
    flat("double", Global, operators::to_double),
    flat("bool", Global, operators::to_bool),
    own("string", Global, operators::to_string),
    own("bytes", Global, operators::to_bytes),
    flat("dyn", Global, operators::to_dyn),
    flat("type", Global, operators::type_of),
    flat("duration", Global, time::duration),
    flat("timestamp", Global, time::timestamp),
    // Times.
    flat("getFullYear", Member, time::full_year),
    flat("getMonth", Member, time::month),
    flat("getDayOfYear", Member, time::day_of_year),
    flat("getDayOfMonth", Member, time::day_of_month),
    flat("getDate", Member, time::date),
    flat("getDayOfWeek", Member, time::day_of_week),
    flat("getHours", Member, time::hours),
    flat("getMinutes", Member, time::minutes),
    flat("getSeconds", Member, time::seconds),
    flat("getMilliseconds", Member, time::milliseconds),
    // Strings.
    own("matches", Both, text::matches),
    own("find", Member, text::find),
    own("findAll", Member, text::find_all),
    own("contains", Member, text::contains),
    own("startsWith", Member, text::starts_with),
    own("endsWith", Member, text::ends_with),
    own("charAt", Member, text::char_at),
    own("substring", Member, text::substring),
    own("lowerAscii", Member, text::lower),
    own("upperAscii", Member, text::upper),
    own("trim", Member, text::trim),
    own("replace", Member, text::replace),
    own("split", Member, text::split),
    own("join", Member, text::join),
    own("format", Member, text::format),
    own("strings.quote", Global, text::quote),
    own("jsonpatch.escapeKey", Global, text::escape_key),
    // Lists, sets, optional values.
    own("indexOf", Member, lists::index_of),
    own("lastIndexOf", Member, lists::last_index_of),
    own("isSorted", Member, lists::is_sorted),
    own("sum", Member, lists::sum),
    own("min", Member, lists::min),
    own("max", Member, lists::max),
    own("sets.contains", Global, lists::sets_contains),
    own("sets.equivalent", Global, lists::sets_equivalent),
    own("sets.intersects", Global, lists::sets_intersects),
    flat("optional.none", Global, lists::optional_none),
    flat("optional.of", Global, lists::optional_of),
    flat("optional.ofNonZeroValue", Global, lists::optional_of_non_zero),
    flat("hasValue", Member, lists::has_value),
    flat("value", Member, lists::value),
    flat("or", Member, lists::or),
    flat("orValue", Member, lists::or_value),
    // URLs and addresses.
    own("url", Global, network::url),
    own("isURL", Global, network::is_url),
    flat("getScheme", Member, network::scheme),
    flat("getHost", Member, network::host),
    flat("getHostname", Member, network::hostname),
    flat("getPort", Member, network::port),
    flat("getEscapedPath", Member, network::escaped_path),
    own("getQuery", Member, network::query),
    own("ip", Both, network::ip),
    own("isIP", Global, network::is_ip),
    own("ip.isCanonical", Global, network::is_canonical),
    flat("family", Member, network::family),
    flat("isUnspecified", Member, network::is_unspecified),
    flat("isLoopback", Member, network::is_loopback),
    flat("isLinkLocalMulticast", Member, network::is_link_local_multicast),
    flat("isLinkLocalUnicast", Member, network::is_link_local_unicast),
    flat("isGlobalUnicast", Member, network::is_global_unicast),
    own("cidr", Global, network::cidr),
    own("isCIDR", Global, network::is_cidr),
    own("containsIP", Member, network::contains_ip),
    own("containsCIDR", Member, network::contains_cidr),
    flat("masked", Member, network::masked),
    flat("prefixLength", Member, network::prefix_length),
    // Quantities, versions, images, formats.
    own("quantity", Global, versions::quantity),
    own("isQuantity", Global, versions::is_quantity),
    flat("sign", Member, versions::sign),
    flat("isInteger", Member, versions::is_integer),
    flat("asInteger", Member, versions::as_integer),
    flat("asApproximateFloat", Member, versions::as_float),
    flat("add", Member, versions::add),
    flat("sub", Member, versions::sub),
    flat("isLessThan", Member, versions::is_less),
    flat("isGreaterThan", Member, versions::is_greater),
    flat("compareTo", Member, versions::compare),
    own("semver", Global, versions::semver),
    own("isSemver", Global, versions::is_semver),
    flat("major", Member, versions::major),
    flat("minor", Member, versions::minor),
    flat("patch", Member, versions::patch),
    own("image", Global, images::image),
    own("isImage", Global, images::is_image),
    flat("containsDigest", Member, images::contains_digest),
    flat("registry", Member, images::registry),
    flat("repository", Member, images::repository),
    flat("tag", Member, images::tag),
    flat("digest", Member, images::digest),
    flat("identifier", Member, images::identifier),
    flat("format.named", Global, formats::named),
    own("validate", Member, formats::validate),
    // Authorization.
    flat("path", Member, authz::path),
    flat("group", Member, authz::group),
    flat("serviceAccount", Member, authz::service_account),
    flat("resource", Member, authz::resource),
    flat("subresource", Member, authz::subresource),
    flat("namespace", Member, authz::namespace),
    flat("fieldSelector", Member, authz::selector),
    flat("labelSelector", Member, authz::selector),
    flat("name", Member, authz::name),
    own("check", Member, authz::check),
    flat("allowed", Member, authz::allowed),
    flat("reason", Member, authz::reason),
    flat("errored", Member, authz::errored),
    flat("error", Member, authz::error),
];

/// Names of types that an expression can say.
pub(super) const TYPES: [&str; 20] = [
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "optional_type",
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "kubernetes.Quantity",
    "kubernetes.URL",
    "kubernetes.Semver",
    "kubernetes.Image",
    "kubernetes.NamedFormat",
    "net.IP",
    "net.CIDR",
];

/// The function of a name, if it can be called so.
pub(super) fn find(name: &str, member: bool) -> Option<&'static Entry> {
    let wanted = if member { Member } else { Global };
    FUNCTIONS.iter().find(|entry| entry.name == name && (entry.style == wanted || entry.style == Both))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once() {
        let mut names: Vec<&str> = FUNCTIONS.iter().map(|entry| entry.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
