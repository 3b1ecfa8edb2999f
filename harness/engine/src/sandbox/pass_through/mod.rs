//! A file system of the harness's own over a directory of a sandbox: it passes all on to the files below, but has the
//! names or the times of another file system, such as vfat. This file has the harness's side: it lets init mount it,
//! starts the process that serves it, and learns what the target met. `server_process` is that process.

mod file_system;
mod handles;
mod inodes;
mod names;
mod requests;
mod server_process;
mod traits;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::SandboxError;
use super::packet::{PacketSocketPair, receive_message, send_message};
use super::protocol::FILE_SYSTEM_ARGUMENT;

use server_process::{ServeRequest, ServerMessage};

pub(super) use server_process::main;
pub use traits::FileSystemTraits;

/// Time within which the process must be ready.
const READY_TIMEOUT_MS: u16 = 30_000;

/// The process that serves a file system. Dropping it ends it: whoever uses a file there gets ENOTCONN.
pub struct FileSystemServer {
    process: Child,
    socket: OwnedFd,
    evidence: Option<String>,
}

impl FileSystemServer {
    /// Starts a process that serves a mounted file system. `device`: the FUSE device with which it was mounted.
    /// `directory`: what is below. `users`: the user namespace of the sandbox.
    pub(super) fn start(
        traits: FileSystemTraits,
        device: &OwnedFd,
        directory: &OwnedFd,
        users: &File,
    ) -> Result<FileSystemServer, SandboxError> {
        let sockets = PacketSocketPair::new().map_err(SandboxError::system("make a socket"))?;
        let process = Command::new("/proc/self/exe")
            .arg(FILE_SYSTEM_ARGUMENT)
            .stdin(Stdio::from(sockets.theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(SandboxError::system("start a file system"))?;
        let mut server = FileSystemServer { process, socket: sockets.ours, evidence: None };
        let fds = [device.as_raw_fd(), directory.as_raw_fd(), users.as_raw_fd()];
        send_message(server.socket.as_fd(), &ServeRequest { traits }, &fds)
            .map_err(SandboxError::system("start a file system"))?;
        match server.next_message(PollTimeout::from(READY_TIMEOUT_MS))? {
            Some(ServerMessage::Ready) => Ok(server),
            Some(ServerMessage::Failed(why)) => Err(failed(why)),
            Some(ServerMessage::Met(_)) | None => Err(failed("it does not answer")),
        }
    }

    /// What first showed that a process of the target met a trait of the file system.
    ///
    /// # Errors
    /// If the process has failed.
    pub fn evidence(&mut self) -> Result<Option<&str>, SandboxError> {
        while self.evidence.is_none() {
            match self.next_message(PollTimeout::ZERO)? {
                Some(ServerMessage::Met(text)) => self.evidence = Some(text),
                Some(ServerMessage::Failed(why)) => return Err(failed(why)),
                Some(ServerMessage::Ready) => {}
                None => break,
            }
        }
        Ok(self.evidence.as_deref())
    }

    fn next_message(&mut self, timeout: PollTimeout) -> Result<Option<ServerMessage>, SandboxError> {
        let doing = "hear from a file system";
        let mut sources = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let ready = loop {
            match poll(&mut sources, timeout) {
                Err(Errno::EINTR) => {}
                polled => break polled.map_err(SandboxError::system(doing))?,
            }
        };
        if ready == 0 {
            return Ok(None);
        }
        let packet = receive_message(self.socket.as_fd()).map_err(SandboxError::system(doing))?;
        Ok(packet.map(|packet| packet.message))
    }
}

fn failed(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SandboxError {
    SandboxError::system("serve a file system")(std::io::Error::other(why))
}

impl Drop for FileSystemServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
