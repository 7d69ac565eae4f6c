//! Parts that others wrote: the OpenTelemetry Collector, its load client, SDKs, balancers.
//!
//! Each is installed by its own language's package client into a cache outside the tree
//! (`TRACEMESH_PARTS`, else `~/.cache/tracemesh-parts`), once for all tests and processes of a
//! machine; balancers are the system's. The invariant: a part that is returned was installed to its
//! end, from the present recipe: a marker that holds the recipe is written last, and what has no
//! such marker is removed and installed anew. One lock file owns the whole cache. An installation
//! is tried [`TRIES`] times, so that one bad minute of a registry costs nobody a build.
//!
//! Where the installing tool is absent, the part is `None`: the test says that it was skipped, and
//! under `CI=true` it fails instead.

use std::env::var_os;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Version of the collector and of its load client.
const COLLECTOR_VERSION: &str = "v0.160.0";
/// Where the less central modules of the collector are.
const CONTRIB: &str = "github.com/open-telemetry/opentelemetry-collector-contrib";
/// Version of the Python SDK and its exporters.
const PYTHON_SDK_VERSION: &str = "1.45.2";
/// Versions of the JavaScript SDK and its exporters.
const JAVASCRIPT_PACKAGES: [&str; 4] = [
    "@opentelemetry/sdk-trace-node@2.12.0",
    "@opentelemetry/exporter-trace-otlp-grpc@0.223.1",
    "@opentelemetry/exporter-trace-otlp-http@0.223.1",
    "@opentelemetry/exporter-trace-otlp-proto@0.223.1",
];
/// The program that sends with the Go SDK, and the modules that it is built from.
const GO_PROGRAM: [(&str, &str); 2] =
    [("main.go", include_str!("parts/send.go")), ("go.mod", include_str!("parts/go.mod"))];
/// What the Java SDK is made of.
const JAVA_PROJECT: &str = include_str!("parts/pom.xml");
/// How often an installation is tried.
const TRIES: usize = 3;
/// Written into the directory of a part when it is complete: its recipe.
const MARKER: &str = "complete";
/// What the collector is built from.
const COLLECTOR_MODULES: &str = include_str!("parts/otelcol.yaml");

/// The OpenTelemetry Collector, built from the modules that the tests use; `None` without Go.
///
/// # Panics
/// When it cannot be installed.
pub fn otelcol() -> Option<PathBuf> {
    let recipe =
        COLLECTOR_MODULES.replace("VERSION", COLLECTOR_VERSION).replace("CONTRIB", CONTRIB);
    let directory = part("otelcol", &recipe, "go", |directory| {
        let builder = "go.opentelemetry.io/collector/cmd/builder";
        go_install(directory, builder)?;
        let build = directory.join("build");
        let modules = recipe.replace("OUTPUT", &build.to_string_lossy());
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
        go_install(directory, &format!("{CONTRIB}/cmd/telemetrygen"))
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

/// A directory whose `node_modules` has the OpenTelemetry SDK with its OTLP exporters; `None`
/// without npm.
///
/// # Panics
/// When it cannot be installed.
pub fn javascript_sdk() -> Option<PathBuf> {
    part("javascript-sdk", &JAVASCRIPT_PACKAGES.join("\n"), "npm", |directory| {
        let flags = ["--no-audit", "--no-fund", "--prefix"];
        run(Command::new("npm").arg("install").args(flags).arg(directory).args(JAVASCRIPT_PACKAGES))
    })
}

/// A program that sends with the Go SDK; `None` without Go.
///
/// # Panics
/// When it cannot be built.
pub fn go_sdk() -> Option<PathBuf> {
    let recipe = GO_PROGRAM.map(|(_, text)| text).concat();
    let directory = part("go-sdk", &recipe, "go", |directory| {
        for (name, text) in GO_PROGRAM {
            fs::write(directory.join(name), text).map_err(|error| error.to_string())?;
        }
        run(go("go".into(), directory).current_dir(directory).args(["build", "-o", "send", "."]))
    })?;
    Some(directory.join("send"))
}

/// A directory with the jars of the Java SDK and its OTLP exporter; `None` without Maven.
///
/// # Panics
/// When they cannot be installed.
pub fn java_sdk() -> Option<PathBuf> {
    part("java-sdk", JAVA_PROJECT, "mvn", |directory| {
        fs::write(directory.join("pom.xml"), JAVA_PROJECT).map_err(|error| error.to_string())?;
        let arguments = ["--quiet", "--batch-mode", "dependency:copy-dependencies"];
        let mut mvn = Command::new("mvn");
        run(mvn.current_dir(directory).args(arguments).arg("-DoutputDirectory=."))
    })
}

/// A program of the system's packages; `None` where it is absent.
///
/// # Panics
/// When it is absent under `CI=true`.
pub fn of_the_system(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        skip(&format!("this needs `{name}`"));
    }
    found
}

/// The complete directory of a part; `None` where `tool`, which installs it, is absent.
fn part(
    name: &str,
    recipe: &str,
    tool: &str,
    install: impl Fn(&Path) -> Result<(), String>,
) -> Option<PathBuf> {
    let cache = cache();
    fs::create_dir_all(&cache).expect("the cache for parts can be made");
    let lock = File::create(cache.join("lock")).expect("the cache for parts can be written");
    lock.lock().expect("the cache for parts can be locked");
    let directory = cache.join(name);
    let marker = directory.join(MARKER);
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == recipe) {
        return Some(directory);
    }
    if find(tool).is_none() {
        skip(&format!("{name} needs `{tool}`"));
        return None;
    }
    for attempt in 1..=TRIES {
        eprintln!("installing {name} into {} (try {attempt})", directory.display());
        // An error means that there is nothing to remove.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("the directory of a part can be made");
        match install(&directory) {
            Ok(()) => {
                fs::write(&marker, recipe).expect("the marker can be written");
                return Some(directory);
            }
            Err(error) => eprintln!("{name} was not installed: {error}"),
        }
    }
    panic!("{name} could not be installed in {TRIES} tries");
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(var_os("HOME").unwrap_or_default()).join(".cache/tracemesh-parts");
    let cache = var_os("TRACEMESH_PARTS").map_or_else(home, PathBuf::from);
    std::path::absolute(cache).expect("the cache has a path")
}

/// Says that a test is skipped, because this machine lacks what it `needs`.
///
/// # Panics
/// Under `CI=true`.
fn skip(needs: &str) {
    let in_ci = var_os("CI").is_some_and(|value| value == "true");
    assert!(!in_ci, "{needs}, which this machine has not");
    eprintln!("SKIPPED: {needs}, which this machine has not");
}

/// Where a program of the system is; daemons are in `/usr/sbin`, on the path or not.
fn find(program: &str) -> Option<PathBuf> {
    let paths = var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
    directories.map(|directory| directory.join(program)).find(|path| path.is_file())
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
