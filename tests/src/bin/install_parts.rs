//! Installs the parts that others wrote, before the tests that need them do it one by one.

use tracemesh_tests::parts;

fn main() {
    parts::otelcol();
    parts::telemetrygen();
    parts::python_with_sdk();
    parts::javascript_sdk();
    parts::go_sdk();
    parts::java_sdk();
}
