//! What a test and an agent say to each other: a length, JSON, and the bytes of a file where there is one.

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::PathBuf;

/// A message's words.
const WORDS_BYTES_MAX: u32 = 1 << 20;
/// A file's bytes.
pub(super) const FILE_BYTES_MAX: u32 = 512 << 20;

/// A process to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Start {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    directory: Option<PathBuf>,
    log: Option<PathBuf>,
    user: Option<(u32, u32)>,
}

/// What a program that has ended had to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its status, or 128 and the signal that ended it.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Write the bytes that follow; folders above are made.
    Put { path: PathBuf, mode: u32, owner: Option<(u32, u32)> },
    /// Answer with the bytes of a file.
    Get { path: PathBuf },
    /// Start a process that goes on by itself, in a process group of its own.
    Spawn(Start),
    /// Run a program to its end.
    Run { start: Start, limit_ms: u64 },
    /// Send a signal to a started process and all of its group.
    Signal { pid: i32, signal: i32 },
    /// Wait for a started process.
    Wait { pid: i32, limit_ms: u64 },
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Tell {
    Done,
    /// The file's bytes follow.
    File,
    Process(i32),
    Output(Output),
    /// The status of the process, if it has ended.
    End(Option<i32>),
    Failed(String),
}

impl Start {
    /// A program, by a path or by a name that the guest's PATH has.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), ..Self::default() }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// With a working folder.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// With both outputs added to this file of the guest; without one, the output of a spawned process goes
    /// where the agent's goes, which the starter of the guests shows.
    #[must_use]
    pub fn log(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }

    /// As another user and group.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    pub(super) fn command(&self) -> Result<std::process::Command> {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(std::process::Stdio::null()).process_group(0);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        if let Some(log) = &self.log {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
            let file = file.with_context(|| format!("cannot write {}", log.display()))?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        Ok(command)
    }

    pub(super) fn program(&self) -> &std::path::Path {
        &self.program
    }
}

/// Writes a message and the bytes that go with it.
pub(super) fn send(mut to: impl Write, words: &impl Serialize, bytes: &[u8]) -> Result<()> {
    let words = serde_json::to_vec(words)?;
    let lengths = [u32::try_from(words.len())?, u32::try_from(bytes.len())?];
    ensure!(lengths[0] <= WORDS_BYTES_MAX, "a message of {} bytes is too long", lengths[0]);
    ensure!(lengths[1] <= FILE_BYTES_MAX, "a file of {} bytes is too large for a guest", lengths[1]);
    let mut message = Vec::with_capacity(8 + words.len());
    message.extend(lengths.iter().flat_map(|length| length.to_be_bytes()));
    message.extend(words);
    to.write_all(&message)?;
    to.write_all(bytes)?;
    Ok(to.flush()?)
}

/// Reads a message and the bytes that go with it; none at the end of the stream.
pub(super) fn receive<T: DeserializeOwned>(mut from: impl Read) -> Result<Option<(T, Vec<u8>)>> {
    let mut head = [0; 8];
    match from.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let [a, b, c, d, e, f, g, h] = head;
    let (words_bytes, file_bytes) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    ensure!(words_bytes <= WORDS_BYTES_MAX && file_bytes <= FILE_BYTES_MAX, "a message is too long");
    let mut words = vec![0; words_bytes as usize];
    from.read_exact(&mut words)?;
    let mut bytes = vec![0; file_bytes as usize];
    from.read_exact(&mut bytes)?;
    Ok(Some((serde_json::from_slice(&words)?, bytes)))
}
