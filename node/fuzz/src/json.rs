//! A request in JSON: what is read is valid protobuf, and is the same when it is written and read
//! again.

use tracemesh::json::{from_json, to_json};
use tracemesh::scan::scan;

/// The property of any bytes.
pub fn check(text: &[u8]) {
    let Ok(bytes) = from_json(text) else { return };
    assert!(scan(&bytes).is_ok());
    let json = to_json(&bytes).expect("what was read can be written");
    let again = from_json(json.as_bytes()).expect("what was written can be read");
    assert_eq!(to_json(&again).expect("and written"), json);
}
