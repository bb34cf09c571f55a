//! Lists and sets: `pkg/cel/library/lists.go` and cel-go's `ext/sets.go`; optional values.

use std::cmp::Ordering;

use super::meter::{Meter, traversal};
use super::value::{Value, equal};
use super::{Outcome, Stop, no_overload, text};

/// The order of two items of a list, which are of one type.
fn order(a: &Value, b: &Value) -> Result<Ordering, Stop> {
    a.compare(b).ok_or_else(Stop::no_overload).map(|order| order.unwrap_or(Ordering::Equal))
}

pub(super) fn is_sorted(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::List(items)] = args else { return no_overload() };
    meter.spend(traversal(&args[0]))?;
    for pair in items.windows(2) {
        if order(&pair[0], &pair[1])? == Ordering::Greater {
            return Ok(false.into());
        }
    }
    Ok(true.into())
}

fn extreme(meter: &mut Meter, args: &[Value], wanted: Ordering, name: &str) -> Outcome {
    let [Value::List(items)] = args else { return no_overload() };
    meter.spend(traversal(&args[0]))?;
    let mut found = items.first().ok_or_else(|| Stop::failed(format!("{name} called on empty list")))?;
    for item in &items[1..] {
        if order(item, found)? == wanted {
            found = item;
        }
    }
    Ok(found.clone())
}

pub(super) fn min(meter: &mut Meter, args: &[Value]) -> Outcome {
    extreme(meter, args, Ordering::Less, "min")
}

pub(super) fn max(meter: &mut Meter, args: &[Value]) -> Outcome {
    extreme(meter, args, Ordering::Greater, "max")
}

/// Of nothing it is the int 0.
pub(super) fn sum(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::List(items)] = args else { return no_overload() };
    meter.spend(traversal(&args[0]))?;
    let Some((first, rest)) = items.split_first() else { return Ok(Value::Int(0)) };
    if !matches!(first, Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_)) {
        return no_overload();
    }
    rest.iter().try_fold(first.clone(), |sum, item| super::operators::add(meter, &[sum, item.clone()]))
}

/// `indexOf` of lists and of strings.
pub(super) fn index_of(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::List(items), wanted] = args else { return text::index_of(meter, args) };
    place(meter, args, items.iter().position(|item| item == wanted))
}

pub(super) fn last_index_of(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::List(items), wanted] = args else { return text::last_index_of(meter, args) };
    place(meter, args, items.iter().rposition(|item| item == wanted))
}

fn place(meter: &mut Meter, args: &[Value], at: Option<usize>) -> Outcome {
    meter.spend(traversal(&args[0]))?;
    Ok(Value::Int(at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1)))
}

/// Whether a list has an item; what it takes to find out is paid for.
fn has(meter: &mut Meter, items: &[Value], wanted: &Value) -> Result<bool, Stop> {
    for item in items {
        let mut steps = 0;
        let found = equal(item, wanted, &mut steps);
        meter.spend(steps)?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn contains_all(meter: &mut Meter, items: &[Value], wanted: &[Value]) -> Result<bool, Stop> {
    for item in wanted {
        if !has(meter, items, item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `sets.contains(list, part)`
pub(super) fn sets_contains(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::List(all), Value::List(part)] = args else { return no_overload() };
    Ok(contains_all(meter, all, part)?.into())
}

pub(super) fn sets_equivalent(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::List(a), Value::List(b)] = args else { return no_overload() };
    Ok((contains_all(meter, a, b)? && contains_all(meter, b, a)?).into())
}

pub(super) fn sets_intersects(meter: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::List(a), Value::List(b)] = args else { return no_overload() };
    for item in b.iter() {
        if has(meter, a, item)? {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

pub(super) fn optional_none(_: &mut Meter, args: &[Value]) -> Outcome {
    if args.is_empty() { Ok(Value::Optional(None)) } else { no_overload() }
}

pub(super) fn optional_of(_: &mut Meter, args: &[Value]) -> Outcome {
    let [value] = args else { return no_overload() };
    Ok(Value::some(value.clone()))
}

pub(super) fn optional_of_non_zero(_: &mut Meter, args: &[Value]) -> Outcome {
    let [value] = args else { return no_overload() };
    let is_zero = match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Int(number) | Value::Duration(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Message(message) => message.fields.is_empty(),
        Value::Optional(value) => value.is_none(),
        _ => false,
    };
    Ok(if is_zero { Value::Optional(None) } else { Value::some(value.clone()) })
}

pub(super) fn has_value(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Optional(value)] = args else { return no_overload() };
    Ok(value.is_some().into())
}

pub(super) fn value(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Optional(value)] = args else { return no_overload() };
    let value = value.as_ref().ok_or_else(|| Stop::failed("optional.none() dereference"))?;
    Ok((**value).clone())
}

pub(super) fn or(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Optional(value), Value::Optional(_)] = args else { return no_overload() };
    Ok(args[usize::from(value.is_none())].clone())
}

pub(super) fn or_value(_: &mut Meter, args: &[Value]) -> Outcome {
    let [Value::Optional(value), other] = args else { return no_overload() };
    Ok(value.as_ref().map_or_else(|| other.clone(), |value| (**value).clone()))
}
