//! The checks themselves, checked: the tree with one planted fault at a time has to be caught.
//!
//! A mutant is a patch file in `simulation/mutants`, with its story above the patch and the number
//! of seeds within which it must be caught, or the plan in which it must be. It is applied to a
//! copy of the tree, built, and run until a check fails that does not fail without the mutant. The
//! invariant: a mutant is caught, or survives, or does not apply, or does not build, and only the
//! first is good. The tree that is checked out is never touched; copy and build stay in
//! `target/mutants`, so that the next mutant rebuilds what it changed and nothing else.

use crate::check::Invariant;
use crate::report::Report;
use crate::swarm::{self, ChildError, Settings};
use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where mutants are, from the root of the repository.
const DIRECTORY: &str = "simulation/mutants";

/// How they are built: see `Cargo.toml`.
const PROFILE: &str = "simulator";

/// A mutant may hang; then it is caught.
const PATIENCE: Duration = Duration::from_secs(300);

/// One planted fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// The file's name without its ending.
    pub name: String,
    /// What was planted, in a sentence or two.
    pub story: String,
    /// Where it must be caught.
    pub ground: Ground,
    path: PathBuf,
}

/// Where a mutant must be caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In one of the first seeds.
    Seeds {
        /// So many.
        count: u64,
        /// Virtual minutes of each.
        minutes: String,
    },
    /// In this plan, from the root of the repository: what it needs to show is seldom drawn.
    Plan(PathBuf),
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seeds { count, .. } => write!(f, "{count} seeds"),
            Self::Plan(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// A check failed that holds without it.
    Caught {
        /// With this seed, or this plan.
        by: String,
        /// What failed; nothing, when the process died or hung.
        invariants: Vec<Invariant>,
    },
    /// No check failed: a hole in the checks.
    Survived,
    /// The code has changed under it: mend the patch.
    DoesNotApply(String),
    /// Mend the patch.
    DoesNotBuild(String),
}

/// All mutants of a repository, by name.
///
/// # Errors
/// There are none, or one cannot be read or does not say how soon it must be caught.
pub fn all(root: &Path) -> anyhow::Result<Vec<Mutant>> {
    let directory = root.join(DIRECTORY);
    let entries = fs::read_dir(&directory).with_context(|| {
        format!("{} cannot be read; run this at the root of the repository", directory.display())
    })?;
    let mut mutants = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("patch")) {
            let text = fs::read_to_string(&path);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            mutants.push(parse(&path, &text)?);
        }
    }
    mutants.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(mutants)
}

fn parse(path: &Path, text: &str) -> anyhow::Result<Mutant> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let head = text.split("\ndiff --git").next().unwrap_or_default();
    let value =
        |key: &str| head.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    let ground = match (value("Plan"), value("Seeds"), value("Minutes")) {
        (Some(plan), None, None) => Ground::Plan(plan.into()),
        (None, Some(seeds), Some(minutes)) => {
            let count = seeds.parse();
            let count = count.with_context(|| format!("{}: Seeds: {seeds}", path.display()))?;
            Ground::Seeds { count, minutes: minutes.to_owned() }
        }
        _ => bail!(
            "{}: lines `Seeds: N` and `Minutes: N`, or `Plan: FILE`, must stand above the patch",
            path.display()
        ),
    };
    let is_ground = |line: &&str| line.starts_with("Seeds: ") || line.starts_with("Plan: ");
    let told = head.lines().take_while(|line| !is_ground(line));
    let story = told.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    Ok(Mutant { name, story, ground, path: path.to_owned() })
}

/// A copy of the tree in which mutants are built.
#[derive(Debug)]
pub struct Laboratory {
    root: PathBuf,
    tree: PathBuf,
    builds: PathBuf,
    /// This program, in which nothing is planted.
    sound: PathBuf,
    jobs: usize,
}

impl Laboratory {
    /// A laboratory below `root`, the root of the repository.
    pub fn new(root: &Path, sound: PathBuf, jobs: usize) -> Self {
        let directory = root.join("target/mutants");
        let (tree, builds) = (directory.join("tree"), directory.join("target"));
        Self { root: root.to_owned(), tree, builds, sound, jobs }
    }

    /// Plants one fault and looks whether it is caught.
    ///
    /// # Errors
    /// The machine has no room, or git or cargo cannot be run.
    pub fn try_out(&self, mutant: &Mutant) -> anyhow::Result<Fate> {
        self.copy_builds()?;
        self.copy_tree()?;
        if let Some(why) = self.apply(mutant)? {
            return Ok(Fate::DoesNotApply(why));
        }
        match self.build()? {
            Err(why) => Ok(Fate::DoesNotBuild(why)),
            Ok(program) => self.hunt(mutant, program),
        }
    }

    /// Begins with what was built of libraries for the sound program: they need no second build.
    fn copy_builds(&self) -> anyhow::Result<()> {
        let built = self.root.join("target").join(PROFILE);
        if self.builds.exists() || !built.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.builds)?;
        let mut copy = Command::new("cp");
        // With their times, by which cargo knows that they are fresh.
        let copied = copy.arg("-a").arg(built).arg(&self.builds).status();
        if !copied.context("cp cannot be run")?.success() {
            bail!("{} cannot be filled", self.builds.display());
        }
        Ok(())
    }

    /// Brings the copy up to date; a file that is the same keeps its time, and needs no new build.
    fn copy_tree(&self) -> anyhow::Result<()> {
        let mut git = Command::new("git");
        git.current_dir(&self.root).args(["ls-files", "-z", "--cached", "--others"]);
        let listed = git.arg("--exclude-standard").output().context("git cannot be run")?;
        let listed = String::from_utf8(listed.stdout).context("names of files")?;
        for name in listed.split('\0').filter(|name| !name.is_empty()) {
            let Ok(content) = fs::read(self.root.join(name)) else { continue };
            let copy = self.tree.join(name);
            if fs::read(&copy).ok().as_ref() != Some(&content) {
                let parent = copy.parent().unwrap_or(&self.tree);
                fs::create_dir_all(parent)?;
                fs::write(&copy, content).with_context(|| format!("{}", copy.display()))?;
            }
        }
        Ok(())
    }

    /// Why the patch does not apply, if it does not.
    fn apply(&self, mutant: &Mutant) -> anyhow::Result<Option<String>> {
        let mut git = Command::new("git");
        git.current_dir(&self.tree).arg("apply").arg(self.root.join(&mutant.path));
        // The copy lies inside of the repository and must not be taken for a part of it.
        git.env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree));
        let applied = git.output().context("git cannot be run")?;
        let why = String::from_utf8_lossy(&applied.stderr).trim().to_owned();
        Ok((!applied.status.success()).then_some(why))
    }

    /// The program with the fault in it, or why there is none.
    fn build(&self) -> anyhow::Result<Result<PathBuf, String>> {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(&self.tree).args(["build", "--profile", PROFILE, "--locked", "--quiet"]);
        cargo.args(["-p", "tracemesh-simulation", "--target-dir"]).arg(&self.builds);
        let built = cargo.output().context("cargo cannot be run")?;
        if built.status.success() {
            return Ok(Ok(self.builds.join(PROFILE).join("tracemesh-sim")));
        }
        let said = String::from_utf8_lossy(&built.stderr);
        Ok(Err(said
            .lines()
            .filter(|line| line.starts_with("error"))
            .collect::<Vec<_>>()
            .join("; ")))
    }

    /// Looks for a check that fails, and does not fail without the mutant.
    fn hunt(&self, mutant: &Mutant, program: PathBuf) -> anyhow::Result<Fate> {
        match &mutant.ground {
            Ground::Seeds { count, minutes } => self.hunt_seeds(*count, minutes, program),
            Ground::Plan(plan) => self.hunt_plan(plan, &program),
        }
    }

    /// Runs seeds, a few at a time, until one is red.
    fn hunt_seeds(&self, count: u64, minutes: &str, program: PathBuf) -> anyhow::Result<Fate> {
        let mut settings = Settings {
            program,
            arguments: vec!["--minutes".to_owned(), minutes.to_owned()],
            seeds: 0..0,
            jobs: self.jobs,
            patience: PATIENCE,
            time: PATIENCE,
        };
        while settings.seeds.end < count {
            let first = settings.seeds.end;
            settings.seeds = first..count.min(first + self.jobs as u64);
            let summary = swarm::run(&settings, |_, _| {});
            let red = summary.swarm.red.into_iter();
            let broken = summary.broken.into_keys().map(|seed| (seed, Vec::new()));
            for (seed, invariants) in red.chain(broken) {
                let sound = Settings { program: self.sound.clone(), ..settings.clone() };
                if is_new(&invariants, &swarm::simulate(&sound, seed)?) {
                    return Ok(Fate::Caught { by: format!("seed {seed}"), invariants });
                }
            }
        }
        Ok(Fate::Survived)
    }

    fn hunt_plan(&self, plan: &Path, program: &Path) -> anyhow::Result<Fate> {
        let by = plan.display().to_string();
        let plan = self.root.join(plan);
        let sound = swarm::replay(&self.sound, &plan, PATIENCE)?;
        let red = match swarm::replay(program, &plan, PATIENCE) {
            Ok(report) if report.verdict.is_green() => return Ok(Fate::Survived),
            Ok(report) => report.verdict.violated.into_keys().collect(),
            Err(ChildError::Hangs(_) | ChildError::Died { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        if !is_new(&red, &sound) {
            return Ok(Fate::Survived);
        }
        Ok(Fate::Caught { by, invariants: red })
    }
}

/// Whether something failed that does not fail in the sound program; nothing stands for a process
/// that died or hung.
fn is_new(red: &[Invariant], sound: &Report) -> bool {
    let known = &sound.verdict.violated;
    red.is_empty() || !red.iter().all(|invariant| known.contains_key(invariant))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "A span is acknowledged\nafter one copy.\n\nSeeds: 20\nMinutes: 0.5\n
diff --git a/x b/x\n--- a/x\n+++ b/x\n";

    #[test]
    fn mutant_tells_its_story_and_how_soon_it_must_be_caught() {
        let mutant = parse(Path::new("simulation/mutants/one.patch"), TEXT).unwrap();
        assert_eq!(mutant.ground, Ground::Seeds { count: 20, minutes: "0.5".to_owned() });
        assert_eq!(
            (mutant.name.as_str(), mutant.story.as_str()),
            ("one", "A span is acknowledged after one copy.")
        );
        let error = parse(Path::new("x.patch"), "diff --git a/x b/x").unwrap_err();
        assert!(error.to_string().contains("Seeds: N"), "{error}");
        let mutant =
            parse(Path::new("x.patch"), "A story.\n\nPlan: a/b.json\n\ndiff --git").unwrap();
        assert_eq!(
            (mutant.story.as_str(), mutant.ground),
            ("A story.", Ground::Plan("a/b.json".into()))
        );
    }

    #[test]
    fn mutants_of_this_repository_apply_to_its_tree() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mutants = all(root).unwrap();
        assert!(mutants.len() >= 8);
        for mutant in mutants {
            let mut git = Command::new("git");
            let checked =
                git.current_dir(root).args(["apply", "--check"]).arg(&mutant.path).output();
            let said = checked.unwrap();
            assert!(said.status.success(), "{}: {said:?}", mutant.name);
            if let Ground::Plan(plan) = mutant.ground {
                assert!(root.join(plan).exists(), "{}", mutant.name);
            }
        }
    }
}
