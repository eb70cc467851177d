//! Types of Redis 8: vector sets and arrays.
//!
//! A vector set's payload holds the graph of neighbours, which is built with random numbers: a replica that
//! was given the same VADDs has another. So vector sets are compared by their elements, vectors and attributes.

use bytes::Bytes;

use super::Pair;
use super::link::Commands;
use super::typed::{Verdict, outnumbered, value};
use crate::error::Result;
use crate::resp::value::Value;

/// Elements in one round trip.
const ELEMENTS: usize = 200;

pub(super) async fn vectors(pair: &mut Pair, key: &Bytes) -> Result<Verdict> {
    let question: [&[u8]; 2] = [b"VINFO", key];
    let (a, b) = pair.one(&question).await?;
    for field in ["quant-type", "vector-dim", "projection-input-dim", "size", "attributes-count"] {
        if a.field(field) != b.field(field) {
            return Ok(value(format!("the vector set's {field} differs")));
        }
    }
    let size = a.field("size").and_then(Value::as_i64).unwrap_or(0).to_string();
    let elements =
        pair.a.one(&[b"VRANDMEMBER", key, size.as_bytes()]).await?.into_array().unwrap_or_default();
    for part in elements.chunks(ELEMENTS) {
        let mut questions = Commands::default();
        for element in part.iter().filter_map(Value::as_bytes) {
            questions.add(&[b"VEMB", key, element]);
            questions.add(&[b"VGETATTR", key, element]);
        }
        let (a, b) = tokio::try_join!(pair.a.ask(&questions), pair.b.ask(&questions))?;
        for ((element, a), b) in part.iter().zip(a.chunks(2)).zip(b.chunks(2)) {
            if !same_vector(&a[0], &b[0]) || a[1] != b[1] {
                let element = element.as_bytes().map(Bytes::copy_from_slice);
                return Ok(value(outnumbered("element", elements.len(), elements.len(), element.as_ref())));
            }
        }
    }
    Ok(None)
}

/// Vectors are stored quantized and come back as decimal text: equal up to the last digits.
fn same_vector(a: &Value, b: &Value) -> bool {
    let numbers = |value: &Value| -> Option<Vec<f64>> {
        value.as_array()?.iter().map(|number| number.as_str()?.parse().ok()).collect()
    };
    match (numbers(a), numbers(b)) {
        (Some(a), Some(b)) => {
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1e-5))
        }
        _ => false,
    }
}

pub(super) async fn array(pair: &mut Pair, key: &Bytes, count: u64) -> Result<Verdict> {
    let mut questions = Commands::default();
    questions.add(&[b"ARLEN", key]);
    questions.add(&[b"ARCOUNT", key]);
    questions.add(&[b"ARNEXT", key]);
    let (a, b) = tokio::try_join!(pair.a.ask(&questions), pair.b.ask(&questions))?;
    if a != b {
        return Ok(value("length, number of elements or next index of the array differ".into()));
    }
    let Some(last) = a[0].as_str_number().and_then(|len| len.checked_sub(1)) else { return Ok(None) };
    let (end, limit) = (last.to_string(), count.to_string());
    let mut from = 0u64;
    loop {
        let start = from.to_string();
        let args: [&[u8]; 6] = [b"ARSCAN", key, start.as_bytes(), end.as_bytes(), b"LIMIT", limit.as_bytes()];
        let (a, b) = pair.one(&args).await?;
        if a != b {
            return Ok(value(format!("the arrays differ from index {from} on")));
        }
        // Pairs of index and value.
        let items = a.as_array().unwrap_or_default();
        let index = items.len().checked_sub(2).and_then(|at| items[at].as_str_number());
        match index {
            Some(index) if index < last => from = index + 1,
            _ => return Ok(None),
        }
    }
}

trait Number {
    /// An index, which may be sent as an integer or, above 2^63, as a string.
    fn as_str_number(&self) -> Option<u64>;
}

impl Number for Value {
    fn as_str_number(&self) -> Option<u64> {
        match self {
            Value::Integer(number) => u64::try_from(*number).ok(),
            other => other.as_str()?.parse().ok(),
        }
    }
}
