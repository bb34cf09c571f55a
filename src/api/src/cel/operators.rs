//! Operators and the functions of the language itself: conversions, `size`.

use std::cmp::Ordering;
use std::sync::Arc;

use super::meter::Meter;
use super::value::{Key, Value, equal, whole};
use super::{Outcome, Stop, no_overload, text, time};

fn overflow<T>(result: Option<T>, make: fn(T) -> Value, name: &str) -> Outcome {
    result.map(make).ok_or_else(|| Stop::failed(format!("{name} overflow")))
}

fn int(result: Option<i64>) -> Outcome {
    overflow(result, Value::Int, "integer")
}

fn uint(result: Option<u64>) -> Outcome {
    overflow(result, Value::Uint, "unsigned integer")
}

pub(super) fn add(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [a, b] = args else { return no_overload() };
    match (a, b) {
        (Value::String(a), Value::String(b)) => {
            meter.traverse((a.len() + b.len()) as u64, 1)?;
            Ok(Value::String(Arc::from([&**a, &**b].concat())))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.traverse((a.len() + b.len()) as u64, 1)?;
            Ok(Value::Bytes(Arc::from([&**a, &**b].concat())))
        }
        (Value::List(a), Value::List(b)) => {
            // Upstream links the two lists, this copies them.
            meter.spend(((a.len() + b.len()) as u64).div_ceil(10).max(1))?;
            Ok(a.iter().chain(b.iter()).cloned().collect::<Vec<Value>>().into())
        }
        _ => {
            meter.spend(1)?;
            match (a, b) {
                (Value::Int(a), Value::Int(b)) => int(a.checked_add(*b)),
                (Value::Uint(a), Value::Uint(b)) => uint(a.checked_add(*b)),
                (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
                _ => time::add(a, b),
            }
        }
    }
}

pub(super) fn sub(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Int(a), Value::Int(b)] => int(a.checked_sub(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_sub(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [a, b] => time::sub(a, b),
        _ => no_overload(),
    }
}

pub(super) fn multiply(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Int(a), Value::Int(b)] => int(a.checked_mul(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_mul(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
        _ => no_overload(),
    }
}

pub(super) fn divide(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(Stop::failed("division by zero"))
        }
        [Value::Int(a), Value::Int(b)] => int(a.checked_div(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_div(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
        _ => no_overload(),
    }
}

pub(super) fn modulo(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(Stop::failed("modulus by zero"))
        }
        [Value::Int(a), Value::Int(b)] => int(a.checked_rem(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_rem(*b)),
        _ => no_overload(),
    }
}

pub(super) fn negate(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Int(number)] => int(number.checked_neg()),
        [Value::Double(number)] => Ok(Value::Double(-number)),
        [Value::Duration(nanos)] => overflow(nanos.checked_neg(), Value::Duration, "duration"),
        _ => no_overload(),
    }
}

pub(super) fn not(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Bool(truth)] = args else { return no_overload() };
    Ok((!truth).into())
}

/// How much two values of a size cost to compare; what is in them is paid by its number.
fn pay_for_two(meter: &mut Meter, a: &Value, b: &Value, steps: u64) -> Result<(), Stop> {
    meter.traverse(a.size().min(b.size()).max(steps), 1)
}

pub(super) fn equals(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [a, b] = args else { return no_overload() };
    let mut steps = 0;
    let found = equal(a, b, &mut steps);
    pay_for_two(meter, a, b, steps)?;
    Ok(found.into())
}

pub(super) fn not_equals(meter: &mut Meter, args: &[Value]) -> Outcome {
    match equals(meter, args)? {
        Value::Bool(truth) => Ok((!truth).into()),
        other => Ok(other),
    }
}

fn ordered(meter: &mut Meter, args: &[Value], holds: fn(Ordering) -> bool) -> Outcome {
    let [a, b] = args else { return no_overload() };
    pay_for_two(meter, a, b, 1)?;
    let order = a.compare(b).ok_or_else(Stop::no_overload)?;
    Ok(order.is_some_and(holds).into())
}

pub(super) fn less(meter: &mut Meter, args: &[Value]) -> Outcome {
    ordered(meter, args, Ordering::is_lt)
}

pub(super) fn less_equals(meter: &mut Meter, args: &[Value]) -> Outcome {
    ordered(meter, args, Ordering::is_le)
}

pub(super) fn greater(meter: &mut Meter, args: &[Value]) -> Outcome {
    ordered(meter, args, Ordering::is_gt)
}

pub(super) fn greater_equals(meter: &mut Meter, args: &[Value]) -> Outcome {
    ordered(meter, args, Ordering::is_ge)
}

/// `in`
pub(super) fn is_in(meter: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [wanted, Value::List(items)] => {
            meter.spend(items.len() as u64)?;
            let mut steps = 0;
            let found = items.iter().any(|item| equal(item, wanted, &mut steps));
            meter.traverse(steps.saturating_sub(items.len() as u64), 1)?;
            Ok(found.into())
        }
        [wanted, Value::Map(map)] => {
            meter.spend(1)?;
            Ok(Key::of(wanted).is_some_and(|key| map.contains_key(&key)).into())
        }
        _ => no_overload(),
    }
}

pub(super) fn size(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [value @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
            int(i64::try_from(value.size()).ok())
        }
        _ => no_overload(),
    }
}

pub(super) fn to_int(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Int(number)] => Ok(Value::Int(*number)),
        [Value::Uint(number)] => int(i64::try_from(*number).ok()),
        [Value::Double(number)] => int(whole(number.trunc())),
        [Value::String(text)] => text.parse().map(Value::Int).map_err(|_| unparsable("ParseInt", text)),
        [Value::Timestamp(time)] => Ok(Value::Int(time::seconds_of(*time))),
        [Value::Duration(nanos)] => Ok(Value::Int(*nanos)),
        _ => no_overload(),
    }
}

pub(super) fn to_uint(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Uint(number)] => Ok(Value::Uint(*number)),
        [Value::Int(number)] => uint(u64::try_from(*number).ok()),
        [Value::Double(number)] => {
            let number = number.trunc();
            uint((0.0..18_446_744_073_709_551_616.0).contains(&number).then_some(number as u64))
        }
        [Value::String(text)] => text.parse().map(Value::Uint).map_err(|_| unparsable("ParseUint", text)),
        _ => no_overload(),
    }
}

fn unparsable(function: &str, text: &str) -> Stop {
    Stop::failed(format!("strconv.{function}: parsing {text:?}: invalid syntax"))
}

pub(super) fn to_double(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Double(number)] => Ok(Value::Double(*number)),
        [Value::Int(number)] => Ok(Value::Double(*number as f64)),
        [Value::Uint(number)] => Ok(Value::Double(*number as f64)),
        [Value::String(text)] => text.parse().map(Value::Double).map_err(|_| unparsable("ParseFloat", text)),
        _ => no_overload(),
    }
}

pub(super) fn to_bool(_: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Bool(truth)] => Ok((*truth).into()),
        [Value::String(text)] => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true.into()),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false.into()),
            text => Err(unparsable("ParseBool", text)),
        },
        _ => no_overload(),
    }
}

pub(super) fn to_string(meter: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::String(_)] => meter.spend(1).map(|()| args[0].clone()),
        [Value::Bytes(bytes)] => {
            meter.traverse(bytes.len() as u64, 1)?;
            let text = std::str::from_utf8(bytes);
            text.map(Value::from)
                .map_err(|_| Stop::failed("invalid UTF-8 in bytes, cannot convert to string"))
        }
        [Value::Null | Value::List(_) | Value::Map(_) | Value::Type(_)] => no_overload(),
        [value] => {
            meter.spend(1)?;
            text::shown(value).map_or_else(no_overload, |text| Ok(text.into()))
        }
        _ => no_overload(),
    }
}

pub(super) fn to_bytes(meter: &mut Meter, args: &[Value]) -> Outcome {
    match args {
        [Value::Bytes(_)] => meter.spend(1).map(|()| args[0].clone()),
        [Value::String(text)] => {
            meter.traverse(args[0].size(), 1)?;
            Ok(Value::Bytes(text.as_bytes().into()))
        }
        _ => no_overload(),
    }
}

pub(super) fn to_dyn(_: &mut Meter, args: &[Value]) -> Outcome {
    let [value] = args else { return no_overload() };
    Ok(value.clone())
}

pub(super) fn type_of(_: &mut Meter, args: &[Value]) -> Outcome {
    let [value] = args else { return no_overload() };
    Ok(Value::Type(value.type_name().into()))
}
