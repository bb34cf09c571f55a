//! Resource quantities (`100m`, `1.5Gi`, `2e3`) as apimachinery's
//! `resource.Quantity`: fixed point with nine decimals, never a float.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Upstream caps at 2^63-1 units.
const MAX: i128 = (i64::MAX as i128) * NANO;

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 1k, 1M, 100m
    DecimalSi,
    /// 1Ki, 1Mi
    BinarySi,
    /// 1e3
    DecimalExponent,
}

/// A quantity in billionths of a unit, with the format it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

enum Scale {
    Ten(i32),
    Two(u32),
}

fn suffix(s: &str) -> Option<(Scale, Format)> {
    if let Some((_, e)) = DECIMAL.iter().find(|(n, _)| *n == s) {
        return Some((Scale::Ten(*e), Format::DecimalSi));
    }
    if let Some(i) = BINARY.iter().skip(1).position(|n| *n == s) {
        return Some((Scale::Two(10 * (i as u32 + 1)), Format::BinarySi));
    }
    let exponent: i32 = s.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some((Scale::Ten(exponent), Format::DecimalExponent))
}

/// Multiplies by a power of ten; dividing rounds away from zero.
fn scale_ten(mut v: i128, mut e: i32) -> i128 {
    while e > 0 && v != 0 {
        v = v.saturating_mul(10);
        e -= 1;
    }
    let mut up = false;
    while e < 0 && v != 0 {
        up |= v % 10 != 0;
        v /= 10;
        e += 1;
    }
    if up { v + 1 } else { v }
}

/// Multiplies by powers of two and of ten; dividing rounds away from zero. The whole and the fraction apart: together
/// they may have more digits than there is room for.
fn scale_both(v: i128, bits: u32, e: i32) -> i128 {
    const KEPT: u32 = 18;
    /// No i128 has more digits.
    const MOST: i32 = 38;
    let two = 1_i128 << bits;
    let v = scale_ten(v, (e + MOST).min(0));
    let places = e.clamp(-MOST, 0).unsigned_abs();
    let unit = 10_i128.pow(places);
    let whole = scale_ten((v / unit).saturating_mul(two), e.max(0));
    let fraction = scale_ten(v % unit, -i32::try_from(places.saturating_sub(KEPT)).unwrap_or(0));
    whole.saturating_add(scale_ten(fraction * two, -i32::try_from(places.min(KEPT)).unwrap_or(0)))
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (negative, rest) = match s.as_bytes().first() {
            Some(b'-') => (true, &s[1..]),
            Some(b'+') => (false, &s[1..]),
            _ => (false, s),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseQuantityError::Format);
        }
        if !tail.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'+') {
            return Err(ParseQuantityError::Format);
        }
        let (scale, format) = suffix(tail).ok_or(ParseQuantityError::Suffix)?;
        let fraction = fraction.trim_end_matches('0');
        let mut digits: i128 = 0;
        let mut dropped = 0;
        for c in whole.bytes().chain(fraction.bytes()) {
            // Beyond 28 digits a value is capped or rounded anyway.
            if digits > 10_i128.pow(28) {
                dropped += 1;
            } else {
                digits = digits * 10 + i128::from(c - b'0');
            }
        }
        let exponent = dropped - fraction.len() as i32;
        let mut nanos = match scale {
            Scale::Ten(e) => scale_ten(digits, exponent.saturating_add(e).saturating_add(9).clamp(-60, 60)),
            Scale::Two(bits) => scale_both(digits, bits, (exponent + 9).clamp(-60, 60)),
        };
        nanos = nanos.min(MAX);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANO, format }
    }

    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// From JSON: a string or a number.
    pub fn from_value(v: &serde_json::Value) -> Option<Self> {
        match v {
            serde_json::Value::String(s) => s.trim().parse().ok(),
            serde_json::Value::Number(n) => n.to_string().parse().ok(),
            _ => None,
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    fn rounded(&self, unit: i128) -> i64 {
        let q = self.nanos / unit;
        let q = if self.nanos % unit == 0 { q } else { q + self.nanos.signum() };
        i64::try_from(q).unwrap_or(if q < 0 { i64::MIN } else { i64::MAX })
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        self.rounded(NANO)
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        self.rounded(NANO / 1000)
    }

    /// As a float, which may not be exact.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// True for whole units.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }
}

/// The sum has the format of the first summand that is not zero; it saturates.
impl std::ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + Self { nanos: -other.nanos, format: other.format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small {
            let mut v = i128::from(self.value());
            let mut i = 0;
            while i + 1 < BINARY.len() && v % 1024 == 0 {
                v /= 1024;
                i += 1;
            }
            return write!(f, "{v}{}", BINARY[i]);
        }
        let mut v = self.nanos;
        let mut i = 0;
        while i + 1 < DECIMAL.len() && v % 1000 == 0 {
            v /= 1000;
            i += 1;
        }
        match (self.format, DECIMAL[i].1) {
            (Format::DecimalExponent, 0) => write!(f, "{v}"),
            (Format::DecimalExponent, e) => write!(f, "{v}e{e}"),
            _ => write!(f, "{v}{}", DECIMAL[i].0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical() {
        let cases = [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1024Mi", "1Gi"),
            ("1000Mi", "1000Mi"),
            ("0.5Gi", "512Mi"),
            ("1.0000000000000000000000000000Ei", "1Ei"),
            ("1.5000000000000000000000000001Ki", "1537"),
            ("0.50000000000000000000000000000000000000000000000001Ei", "512Pi"),
            ("512", "512"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1E", "1E"),
            ("-1.5Gi", "-1536Mi"),
            ("12e-3", "12e-3"),
            ("0.0000000001", "1n"),
            (".5", "500m"),
            ("1.", "1"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
        ];
        for (text, want) in cases {
            let q: Quantity = text.parse().unwrap();
            assert_eq!(q.to_string(), want, "{text}");
            // What is written is rounded up to whole units where the suffix is a binary one.
            let again: Quantity = q.to_string().parse().unwrap();
            assert_eq!((again.value(), again.to_string().as_str()), (q.value(), want), "{text}");
        }
        for bad in ["", "x", "1.2.3", "1ki", "1 Gi", "--1", "1ee3", ".", "1Zi"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |s: &str| s.parse::<Quantity>().unwrap();
        assert_eq!(q("100m").milli_value(), 100);
        assert_eq!(q("100m").value(), 1);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!((q("1") + q("500m")).to_string(), "1500m");
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1000m"), q("1"));
    }
}
