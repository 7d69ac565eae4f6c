//! `tracemesh keygen`: a new cluster key, or the successor of one.
//!
//! Prints one line and keeps nothing. A successor has the hash key of the one before, so that a
//! change of key moves no trace.

use super::{Exit, Misuse};
use std::io::Write;
use std::path::PathBuf;
use tracemesh_transport::ClusterKey;

const EXAMPLE: &str = "\
Example:
  tracemesh keygen > cluster.key       then copy it to every node: --cluster-key-file cluster.key

To change the key without a pause, in three steps. In each, change the file once, copy it to every
node, and restart the nodes one after the other:
  1. tracemesh keygen --after cluster.key >> cluster.key   the second key is trusted, too
  2. move the second line before the first                 the new key issues, both are trusted
  3. remove the old key, now the second line               only the new key is trusted";

/// Which key.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    /// Print a key to follow the first one in this file
    #[arg(long, value_name = "FILE")]
    after: Option<PathBuf>,
}

/// Prints the key, made from a source that nobody can predict.
pub(super) fn run(
    arguments: &Arguments,
    random: &mut dyn rand::RngCore,
    output: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let key = match &arguments.after {
        None => ClusterKey::generate(random),
        Some(file) => {
            let misuse = |why: String| Misuse(format!("--after: {}: {why}", file.display()));
            let text = std::fs::read_to_string(file)
                .map_err(|error| misuse(format!("cannot read it: {error}")))?;
            let keys = ClusterKey::parse_file(&text).map_err(|error| misuse(error.to_string()))?;
            keys[0].successor(random)
        }
    };
    writeln!(output, "{}", key.to_text())?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn printed(after: Option<PathBuf>, seed: u64) -> anyhow::Result<String> {
        let mut output = Vec::new();
        run(&Arguments { after }, &mut StdRng::seed_from_u64(seed), &mut output)?;
        Ok(String::from_utf8(output)?)
    }

    #[test]
    fn printed_key_is_a_key_file() {
        let text = printed(None, 1).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(ClusterKey::parse_file(&text).unwrap().len(), 1);
        assert_ne!(text, printed(None, 2).unwrap());
    }

    #[test]
    fn successor_appended_to_the_file_makes_a_file_of_two_keys() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.key");
        let first = printed(None, 1).unwrap();
        std::fs::write(&file, &first).unwrap();
        let second = printed(Some(file), 2).unwrap();
        assert_ne!(first, second);
        let keys = ClusterKey::parse_file(&format!("{first}{second}")).unwrap();
        assert_eq!(keys[0].hash_key(), keys[1].hash_key());
    }

    #[test]
    fn file_without_a_key_is_a_misuse_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.key");
        let missing = printed(Some(file.clone()), 1).unwrap_err();
        assert!(missing.is::<Misuse>());
        assert!(missing.to_string().contains("cluster.key: cannot read it"), "{missing}");
        std::fs::write(&file, "nothing of the kind").unwrap();
        let noise = printed(Some(file), 1).unwrap_err();
        assert!(noise.is::<Misuse>() && noise.to_string().contains("line 1"), "{noise}");
    }
}
