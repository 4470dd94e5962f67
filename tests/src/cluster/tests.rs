use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("selvage-x");
    (parent, path)
}

fn refusal(path: &Path) -> String {
    Folder::take(path).unwrap_err().to_string()
}

/// Takes a folder whose lock was just given up: a process that another test starts in this moment has it
/// until it executes its program.
fn take_soon(path: &Path) -> Folder {
    let mut taken = None;
    wait_for("the lock to be free", || {
        taken = Folder::take(path).ok();
        taken.is_some()
    });
    taken.unwrap()
}

#[test]
fn a_run_folder_has_one_owner() {
    let (_parent, path) = folder();
    let held = Folder::take(&path).unwrap();
    let why = refusal(&path);
    assert!(why.contains("running") && why.contains(&std::process::id().to_string()), "{why}");
    held.remove().unwrap();
    assert!(!path.exists());
    take_soon(&path).remove().unwrap();
}

#[test]
fn a_folder_that_others_could_have_prepared_is_refused() {
    let (parent, path) = folder();
    symlink(parent.path(), &path).unwrap();
    assert!(refusal(&path).contains("not a folder of this user"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&path).contains("written by others"));
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(refusal(&path).contains("cannot") || refusal(&path).contains("not a folder"));
}

/// Starts a process that sleeps, as a member.
fn sleeper(folder: &Folder) -> Process {
    // A shell with a child, so that there is a group; it does not replace itself, for there is a command
    // after.
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 60; true"]);
    Process::start(folder, "sleeper", &mut command, Stdio::null()).unwrap()
}

fn wait_for(what: &str, mut good: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !good() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_a_crashed_launcher_left_is_ended_and_removed() {
    let (_parent, path) = folder();
    let held = Folder::take(&path).unwrap();
    let process = sleeper(&held);
    wait_for("a group of two", || process.pids().len() == 2);
    let stranger = Command::new("sleep").arg("60").current_dir(&path).spawn().unwrap();
    // The crash: the lock goes with the process, the rest stays.
    drop(held);
    let group = process.pid();
    std::mem::forget(process);
    let again = take_soon(&path);
    assert_eq!(pids_of_group(group), Vec::<u32>::new(), "ours are gone");
    assert_eq!(pids_working_in(&path), [stranger.id()], "somebody else's process is left alone");
    assert!(!again.pid_record("sleeper").exists());
    end(stranger);
    again.remove().unwrap();
}

#[test]
fn a_sweep_removes_crashed_launchers_folders_and_no_others() {
    let parent = tempfile::tempdir().unwrap();
    let named = |name: &str| parent.path().join(name);
    let config = |folder: &Folder| fs::write(folder.config(), "not a configuration").unwrap();
    let crashed = Folder::take(&named("selvage-0-t1")).unwrap();
    config(&crashed);
    drop(crashed);
    let living = Folder::take(&named("selvage-0-t2")).unwrap();
    config(&living);
    drop(Folder::take(&named("other-t3")).unwrap());
    fs::create_dir(named("selvage-0-t4")).unwrap();
    wait_for("the crashed one to be removed", || {
        Folder::sweep(parent.path(), "selvage-0-t");
        !named("selvage-0-t1").exists()
    });
    for left in ["selvage-0-t2", "other-t3", "selvage-0-t4"] {
        assert!(named(left).exists(), "{left}");
    }
}

#[test]
fn a_record_that_fits_no_process_of_ours_kills_nobody() {
    let (parent, path) = folder();
    let held = Folder::take(&path).unwrap();
    // A process of the recorded number, but younger than nothing, and working elsewhere.
    let mut elsewhere = Command::new("sleep");
    use std::os::unix::process::CommandExt;
    let elsewhere = elsewhere.arg("60").current_dir(parent.path()).process_group(0).spawn().unwrap();
    fs::write(held.pid_record("n1"), format!("{} 0\n", elsewhere.id())).unwrap();
    // One that works here, but started before the record says.
    let mut younger = Command::new("sleep");
    let younger = younger.arg("60").current_dir(&path).process_group(0).spawn().unwrap();
    fs::write(held.pid_record("n2"), format!("{} {}\n", younger.id(), u64::MAX)).unwrap();
    fs::write(held.pid_record("n3"), "not a record").unwrap();
    held.remove().unwrap();
    for process in [elsewhere, younger] {
        assert_eq!(pids_of_group(process.id()), [process.id()]);
        end(process);
    }
}

fn end(mut process: std::process::Child) {
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_killed_member_is_gone_with_its_children() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let (_parent, path) = folder();
    let held = Folder::take(&path).unwrap();
    let process = sleeper(&held);
    wait_for("a group of two", || process.pids().len() == 2);
    let group = process.pid();
    let kill = process.kill().unwrap();
    assert!(kill.gone >= kill.sent);
    assert_eq!(pids_of_group(group), Vec::<u32>::new());
    assert!(!held.pid_record("sleeper").exists());
    // A child that outlives the first process when that is asked to end is killed in the end.
    let process = sleeper(&held);
    wait_for("a group of two", || process.pids().len() == 2);
    assert!(!process.stop(Signal::TERM, Duration::from_millis(100)).unwrap());
    assert_eq!(pids_working_in(&path), Vec::<u32>::new());
    held.remove().unwrap();
}

#[test]
fn reserved_ports_are_different_and_come_back() {
    let one = Port::free().unwrap();
    let number = one.address.port();
    assert!(Port::reserve(number).is_none(), "reserved already");
    drop(one);
    let again = Port::reserve(number);
    assert!(again.is_some_and(|port| is_free(port.address)));
}
