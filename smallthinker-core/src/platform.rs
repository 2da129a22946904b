//! What the operating system says about this machine. The only file that asks it; everywhere else is
//! portable.

use std::fs;
use std::path::{Path, PathBuf};

/// Compute threads to use by default: CPUs this process may run on (affinity mask and cgroup quota
/// counted), at most one per physical core.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(allowed, |cores| cores.clamp(1, allowed))
}

/// Physical cores of the machine, if it tells. Hyper-threads share a core's load ports, which is what decode
/// is short of.
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for entry in fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let siblings = entry.path().join("topology/thread_siblings_list");
        if let Ok(list) = fs::read_to_string(siblings) {
            cores.insert(list.trim().to_owned());
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Bytes that this process can still take.
#[derive(Debug, Clone, Copy)]
pub struct MemoryRoom {
    /// What the machine has available; `None` where it does not tell.
    pub machine: Option<u64>,
    /// The least that an enclosing cgroup (v1 and v2, every ancestor, `memory.high` too) leaves; `None` without a limit.
    pub groups: Option<u64>,
}

/// What this process can still take of the machine's memory and of each limit.
pub fn memory_room() -> MemoryRoom {
    let groups = cgroup_dirs().into_iter().filter_map(|dir| cgroup_room(&dir)).min();
    MemoryRoom { machine: meminfo_available(), groups }
}

/// The least of these; `None` where nothing tells.
pub fn available_memory() -> Option<u64> {
    let room = memory_room();
    [room.machine, room.groups].into_iter().flatten().min()
}

fn meminfo_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Directories of this process's memory cgroup and of all its ancestors.
fn cgroup_dirs() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut dirs = Vec::new();
    for line in text.lines() {
        // hierarchy-ID:controller-list:path; an empty list is the v2 hierarchy
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            c if c.split(',').any(|c| c == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let relative = path.trim_start_matches('/');
        dirs.extend(Path::new(relative).ancestors().map(|a| Path::new(root).join(a)));
    }
    dirs
}

/// What a cgroup's limits leave beyond its present use; `None` if it has no limit.
fn cgroup_room(dir: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let limits = ["memory.max", "memory.high", "memory.limit_in_bytes"];
    let limit = limits.into_iter().filter_map(number).min()?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or(0);
    // Clean page cache is given back before the limit bites.
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let cache = stat
        .lines()
        .find_map(|l| l.strip_prefix("total_inactive_file ").or_else(|| l.strip_prefix("inactive_file ")))
        .and_then(|n| n.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// Largest resident set of this process so far, in bytes; `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Makes [`peak_rss_bytes`] start again from the present resident set; returns whether the system did.
pub fn reset_peak_rss() -> bool {
    // proc(5): writing 5 resets the peak resident set size.
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes of the largest CPU cache, where the system tells.
pub fn last_level_cache_bytes() -> Option<u64> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?.flatten();
    let sizes = caches.filter_map(|entry| {
        let text = fs::read_to_string(entry.path().join("size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
    });
    sizes.max()
}

/// Asks the system to save this process's tile registers (AMX), without which using them is a fault. Returns
/// whether it does.
#[cfg(target_arch = "x86_64")]
pub(crate) fn allow_amx() -> bool {
    // Once is enough, and later threads inherit the permission.
    static ALLOWED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ALLOWED.get_or_init(request_amx)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn request_amx() -> bool {
    // arch_prctl(2) and the kernel's asm/prctl.h; the state component of tile data has number 18.
    const SYS_ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: a system call that takes two numbers and touches no memory of the process; it changes rax, rcx
    // and r11 only.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    // Granted only where the kernel knows the component and has turned it on in XCR0.
    result == 0
}

/// Other systems grant it in other ways, or not at all.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn request_amx() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_answers() {
        assert!(default_threads() >= 1);
        if cfg!(target_os = "linux") {
            assert!(available_memory().unwrap() > 1 << 20);
            assert!(peak_rss_bytes().unwrap() > 1 << 20);
        }
    }

    #[test]
    fn cgroup_limits_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(cgroup_room(dir.path()), None);
        write("memory.max", "max\n");
        assert_eq!(cgroup_room(dir.path()), None);
        write("memory.max", "1000\n");
        write("memory.high", "900\n");
        write("memory.current", "500\n");
        write("memory.stat", "anon 100\ninactive_file 200\n");
        assert_eq!(cgroup_room(dir.path()), Some(600));
    }
}
