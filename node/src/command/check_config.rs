//! `tracemesh check-config`: reads a configuration as `run` would, and starts nothing.
//!
//! It shows every value in force and where it was typed, or every error. The same flags and
//! variables count as for `run`, so that what was checked is what will run.

use super::Exit;
use crate::config::{self, ConfigErrors, Effective, Flags, Surroundings};
use std::io::{self, Write};

const EXAMPLE: &str = "\
Example:
  tracemesh check-config --config tracemesh.yaml

Exit codes: 0 valid, 2 not valid.";

/// What to check.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Checks; errors that `--json` does not print are returned.
pub(super) fn run(
    arguments: &Arguments,
    surroundings: &Surroundings,
    output: &mut dyn Write,
) -> anyhow::Result<Exit> {
    match config::load(&arguments.flags, surroundings) {
        Ok(config) if arguments.json => write_values_as_json(&config.effective, output)?,
        Ok(config) => write_values(&config.effective, output)?,
        Err(errors) if arguments.json => {
            write_errors_as_json(&errors, output)?;
            return Ok(Exit::Usage);
        }
        Err(errors) => return Err(errors.into()),
    }
    Ok(Exit::Done)
}

fn write_values(values: &[Effective], output: &mut dyn Write) -> io::Result<()> {
    writeln!(output, "ok")?;
    let widest = |text: fn(&Effective) -> &str| {
        values.iter().map(|value| text(value).chars().count()).max().unwrap_or_default()
    };
    let paths = widest(|value| &value.path);
    let texts = widest(|value| &value.value);
    for Effective { path, value, origin } in values {
        writeln!(output, "{path:paths$}  {value:texts$}  {origin}")?;
    }
    Ok(())
}

fn write_values_as_json(values: &[Effective], output: &mut dyn Write) -> io::Result<()> {
    let values = values.iter().map(
        |Effective {
             path,
             value,
             origin,
         }| {
            serde_json::json!({ "path": path, "value": value, "origin": origin.to_string() })
        },
    );
    let values: Vec<_> = values.collect();
    writeln!(output, "{:#}", serde_json::json!({ "ok": true, "values": values }))
}

fn write_errors_as_json(errors: &ConfigErrors, output: &mut dyn Write) -> io::Result<()> {
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    writeln!(output, "{:#}", serde_json::json!({ "ok": false, "errors": errors }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(flags: Flags, json: bool) -> (anyhow::Result<Exit>, String) {
        let surroundings = Surroundings { host_name: "host".into(), ..Surroundings::default() };
        let mut output = Vec::new();
        let exit = run(&Arguments { flags, json }, &surroundings, &mut output);
        (exit, String::from_utf8(output).unwrap())
    }

    fn on_node_a() -> Flags {
        Flags { node_id: Some("a".into()), ..Flags::default() }
    }

    #[test]
    fn valid_configuration_is_shown_with_the_place_of_each_value() {
        let (exit, output) = checked(on_node_a(), false);
        assert_eq!(exit.unwrap(), Exit::Done);
        let lines: Vec<Vec<&str>> =
            output.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["ok"]);
        assert!(lines.contains(&vec!["node.id", "a", "--node-id"]), "{output}");
        assert!(lines.contains(&vec!["traces.root_delay", "6s", "default"]), "{output}");
    }

    #[test]
    fn json_has_the_values_or_the_errors() {
        let (exit, output) = checked(on_node_a(), true);
        assert_eq!(exit.unwrap(), Exit::Done);
        let values: serde_json::Value = serde_json::from_str(&output).unwrap();
        let id = serde_json::json!({ "path": "node.id", "value": "a", "origin": "--node-id" });
        assert!(values["values"].as_array().unwrap().contains(&id), "{output}");

        let (exit, output) = checked(Flags { bind: Some("x".into()), ..on_node_a() }, true);
        assert_eq!(exit.unwrap(), Exit::Usage);
        let errors: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert_eq!(errors["ok"], false);
        assert!(errors["errors"][0].as_str().unwrap().starts_with("--bind: node.bind: "));
    }

    #[test]
    fn errors_are_returned_for_the_command_line_to_print() {
        let (exit, output) = checked(Flags { bind: Some("x".into()), ..on_node_a() }, false);
        assert!(exit.unwrap_err().is::<ConfigErrors>());
        assert_eq!(output, "");
    }
}
