//! A configuration file: it is understood, or refused with every error on a line of its own.

use std::io::Write;
use tracemesh::config::{Flags, Surroundings, load};

/// The property of any bytes.
pub fn check(text: &[u8]) {
    // Names of files are taken at their word, and some files never end.
    if text.windows(5).any(|part| part == b"_file" || part == b"/dev/") {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
    file.write_all(text).expect("a file can be written");
    let flags = Flags { config: Some(file.path().into()), ..Flags::default() };
    let surroundings = Surroundings {
        host_name: "host-1".into(),
        memory_bytes: Some(8 << 30),
        ..Surroundings::default()
    };
    if let Err(errors) = load(&flags, &surroundings) {
        assert!(errors.iter().count() > 0);
        assert_eq!(errors.to_string().lines().count(), errors.iter().count(), "{errors}");
    }
}
