//! Parts that others wrote: the OpenTelemetry Collector, its load client, an SDK.
//!
//! Each is installed by its own language's package client into a cache outside the tree
//! (`TRACEMESH_PARTS`, else `~/.cache/tracemesh-parts`), once for all tests and processes of a
//! machine. The invariant: a part that is returned was installed to its end: a marker is written
//! last, and what has none is removed and installed anew. One lock file owns the whole cache. An
//! installation is tried [`TRIES`] times, so that one bad minute of a registry costs nobody a
//! build.
//!
//! Where the installing tool is absent, the part is `None`: the test says that it was skipped, and
//! under `CI=true` it fails instead.

use std::env::var_os;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Version of the collector and of its load client.
const COLLECTOR_VERSION: &str = "v0.160.0";
/// Version of the Python SDK and its exporters.
const PYTHON_SDK_VERSION: &str = "1.45.2";
/// How often an installation is tried.
const TRIES: usize = 3;
/// Written into the directory of a part when it is complete.
const MARKER: &str = "complete";
/// What the collector is built from.
const COLLECTOR_MODULES: &str = include_str!("parts/otelcol.yaml");

/// The OpenTelemetry Collector, built from the modules that the tests use; `None` without Go.
///
/// # Panics
/// When it cannot be installed.
pub fn otelcol() -> Option<PathBuf> {
    let directory = part("otelcol", COLLECTOR_VERSION, "go", |directory| {
        let builder = "go.opentelemetry.io/collector/cmd/builder";
        go_install(directory, builder)?;
        let build = directory.join("build");
        let modules = COLLECTOR_MODULES
            .replace("VERSION", COLLECTOR_VERSION)
            .replace("OUTPUT", &build.to_string_lossy());
        let file = directory.join("modules.yaml");
        fs::write(&file, modules).map_err(|error| error.to_string())?;
        run(go(directory.join("builder"), directory).arg("--config").arg(file))
    })?;
    Some(directory.join("build/otelcol"))
}

/// The collector's own load client; `None` without Go.
///
/// # Panics
/// When it cannot be installed.
pub fn telemetrygen() -> Option<PathBuf> {
    let directory = part("telemetrygen", COLLECTOR_VERSION, "go", |directory| {
        let module = "github.com/open-telemetry/opentelemetry-collector-contrib/cmd/telemetrygen";
        go_install(directory, module)
    })?;
    Some(directory.join("telemetrygen"))
}

/// A Python interpreter that has the OpenTelemetry SDK with both OTLP exporters; `None` without
/// Python.
///
/// # Panics
/// When it cannot be installed.
pub fn python_with_sdk() -> Option<PathBuf> {
    let directory = part("python-sdk", PYTHON_SDK_VERSION, "python3", |directory| {
        run(Command::new("python3").args(["-m", "venv"]).arg(directory.join("venv")))?;
        let packages = ["sdk", "exporter-otlp-proto-grpc", "exporter-otlp-proto-http"]
            .map(|package| format!("opentelemetry-{package}=={PYTHON_SDK_VERSION}"));
        let python = directory.join("venv/bin/python");
        run(Command::new(python).args(["-m", "pip", "install", "--quiet"]).args(packages))
    })?;
    Some(directory.join("venv/bin/python"))
}

/// The complete directory of a part; `None` where `tool`, which installs it, is absent.
fn part(
    name: &str,
    version: &str,
    tool: &str,
    install: impl Fn(&Path) -> Result<(), String>,
) -> Option<PathBuf> {
    let cache = cache();
    fs::create_dir_all(&cache).expect("the cache for parts can be made");
    let lock = File::create(cache.join("lock")).expect("the cache for parts can be written");
    lock.lock().expect("the cache for parts can be locked");
    let directory = cache.join(format!("{name}-{version}"));
    if directory.join(MARKER).exists() {
        return Some(directory);
    }
    if !is_installed(tool) {
        let in_ci = var_os("CI").is_some_and(|value| value == "true");
        assert!(!in_ci, "{name} needs `{tool}`, which this machine has not");
        eprintln!("SKIPPED: {name} needs `{tool}`, which this machine has not");
        return None;
    }
    for attempt in 1..=TRIES {
        eprintln!("installing {name} {version} into {} (try {attempt})", directory.display());
        // An error means that there is nothing to remove.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("the directory of a part can be made");
        match install(&directory) {
            Ok(()) => {
                File::create(directory.join(MARKER)).expect("the marker can be written");
                return Some(directory);
            }
            Err(error) => eprintln!("{name} was not installed: {error}"),
        }
    }
    panic!("{name} {version} could not be installed in {TRIES} tries");
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(var_os("HOME").unwrap_or_default()).join(".cache/tracemesh-parts");
    let cache = var_os("TRACEMESH_PARTS").map_or_else(home, PathBuf::from);
    std::path::absolute(cache).expect("the cache has a path")
}

fn is_installed(tool: &str) -> bool {
    let paths = var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|directory| directory.join(tool).is_file())
}

fn go_install(directory: &Path, module: &str) -> Result<(), String> {
    let module = format!("{module}@{COLLECTOR_VERSION}");
    run(go("go".into(), directory).args(["install", &module]))
}

/// A command of the Go tools that puts programs into `directory`.
fn go(program: PathBuf, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("GOBIN", directory).env("GOFLAGS", "-mod=mod -buildvcs=false");
    command
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}:\n{printed}", output.status))
}
