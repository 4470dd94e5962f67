//! The agent: carries out, inside a guest, what the test in guest 0 asks for.

use super::wire::{self, Ask, Output, Start, Tell};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a process is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(5);

type Processes = Arc<Mutex<HashMap<i32, Child>>>;

/// Serves until the guest goes off.
///
/// # Errors
/// The listener fails.
pub fn serve(listener: &TcpListener) -> Result<()> {
    let processes = Processes::default();
    loop {
        let (stream, _) = listener.accept().context("an agent cannot accept")?;
        let processes = Arc::clone(&processes);
        thread::spawn(move || {
            // A test that is gone, or that breaks off, is no concern of the agent's.
            let _ = converse(&stream, &processes);
        });
    }
}

fn converse(stream: &TcpStream, processes: &Processes) -> Result<()> {
    stream.set_nodelay(true)?;
    while let Some((ask, bytes)) = wire::receive::<Ask>(stream)? {
        let (tell, file) = match carry_out(ask, &bytes, processes) {
            Ok(answer) => answer,
            Err(error) => (Tell::Failed(format!("{error:#}")), Vec::new()),
        };
        wire::send(stream, &tell, &file)?;
    }
    Ok(())
}

fn carry_out(ask: Ask, bytes: &[u8], processes: &Processes) -> Result<(Tell, Vec<u8>)> {
    let tell = match ask {
        Ask::Put { path, mode, owner } => put(&path, bytes, mode, owner).map(|()| Tell::Done)?,
        Ask::Get { path } => {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok((Tell::File, bytes));
        }
        Ask::Spawn(start) => {
            let child = start.command()?.spawn();
            let child = child.with_context(|| format!("cannot start {}", start.program().display()))?;
            let pid = i32::try_from(child.id())?;
            processes.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, child);
            Tell::Process(pid)
        }
        Ask::Run { start, limit_ms } => Tell::Output(run(&start, Duration::from_millis(limit_ms))?),
        Ask::Signal { pid, signal } => {
            let target = Pid::from_raw(pid).context("no process has this id")?;
            let signal = Signal::from_named_raw(signal).context("no such signal")?;
            match kill_process_group(target, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Tell::Done,
                Err(error) => return Err(error.into()),
            }
        }
        Ask::Wait { pid, limit_ms } => Tell::End(wait(pid, Duration::from_millis(limit_ms), processes)?),
    };
    Ok((tell, Vec::new()))
}

fn put(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    // Never seen half written, by a daemon that looks at the same moment.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || {
        fs::write(&beside, bytes)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
        if let Some((uid, gid)) = owner {
            chown(&beside, Some(uid), Some(gid))?;
        }
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn run(start: &Start, limit: Duration) -> Result<Output> {
    let began = Instant::now();
    let mut command = start.command()?;
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot start {}", start.program().display()))?;
    let stdout = child.stdout.take().map(|pipe| thread::spawn(move || all(pipe)));
    let stderr = child.stderr.take().map(|pipe| thread::spawn(move || all(pipe)));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > limit {
            break None;
        }
        thread::sleep(LOOK);
    };
    // Also what it left behind, which holds the pipes open.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
    let text =
        |reader: Option<thread::JoinHandle<String>>| reader.and_then(|it| it.join().ok()).unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    let name = start.program().display();
    ensure!(status.is_some(), "{name} did not end in {} ms: {stdout}{stderr}", limit.as_millis());
    Ok(Output { code: status.map_or(-1, code), stdout, stderr })
}

fn all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wait(pid: i32, limit: Duration, processes: &Processes) -> Result<Option<i32>> {
    let began = Instant::now();
    loop {
        let mut running = processes.lock().unwrap_or_else(PoisonError::into_inner);
        let child = running.get_mut(&pid).with_context(|| format!("{pid} was not started by this agent"))?;
        if let Some(status) = child.try_wait()? {
            return Ok(Some(code(status)));
        }
        drop(running);
        if began.elapsed() >= limit {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
