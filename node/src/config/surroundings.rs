//! What a configuration takes from the machine: variables, host name, memory.
//!
//! It is read once, at the start, into a value; loading a configuration reads nothing of this by
//! itself, so tests put their own surroundings in place.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;

/// The machine around the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// The machine's name.
    pub host_name: String,
    /// Memory of the machine or of the cgroup, whichever is less; none where neither is known.
    pub memory_bytes: Option<u64>,
}

impl Surroundings {
    /// Those of this process. Bytes that are no UTF-8 are replaced.
    pub fn of_this_process() -> Self {
        let variables = std::env::vars_os().map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        });
        Self {
            variables: variables.collect(),
            host_name: gethostname::gethostname().to_string_lossy().into_owned(),
            memory_bytes: memory_bytes(Path::new("/")),
        }
    }
}

/// The least of the machine's memory and the limits of the control groups around this process.
/// Files that are not there, or hold no number, set no limit.
fn memory_bytes(root: &Path) -> Option<u64> {
    let machine = read_to_string(root.join("proc/meminfo")).ok();
    let machine = machine.as_deref().and_then(total_of_meminfo);
    let limit = |file: &Path| read_to_string(file).ok()?.trim().parse().ok();
    // Version 1, as a container sees it.
    let first = limit(&root.join("sys/fs/cgroup/memory/memory.limit_in_bytes"));
    // Version 2: each group from this process's own up to the root may have a limit.
    let groups = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let second = Path::new(group)
        .ancestors()
        .filter_map(|group| limit(&root.join("sys/fs/cgroup").join(group).join("memory.max")));
    machine.into_iter().chain(first).chain(second).min()
}

/// The format is that of proc(5): `MemTotal:  16314592 kB`.
fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_of(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        memory_bytes(root.path())
    }

    #[test]
    fn memory_is_the_least_of_machine_and_control_groups() {
        let machine = ("proc/meminfo", "MemTotal:       16000 kB\nMemFree: 5 kB\n");
        let own = ("proc/self/cgroup", "0::/pod/container\n");
        let unlimited = ("sys/fs/cgroup/pod/container/memory.max", "max\n");
        let pod = ("sys/fs/cgroup/pod/memory.max", "9000000\n");
        let first = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "8000000\n");
        assert_eq!(memory_of(&[]), None);
        assert_eq!(memory_of(&[machine]), Some(16_384_000));
        assert_eq!(memory_of(&[machine, own, unlimited]), Some(16_384_000));
        assert_eq!(memory_of(&[machine, own, unlimited, pod]), Some(9_000_000));
        assert_eq!(memory_of(&[machine, own, pod, first]), Some(8_000_000));
        assert_eq!(memory_of(&[("proc/meminfo", "MemTotal: lots\n"), pod]), None);
    }
}
