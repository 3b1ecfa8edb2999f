//! File systems of the harness's own over directories of a sandbox: init mounts them, and a process of the harness
//! serves them. Knows no fault.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::Sandbox;
use crate::sandbox::error::SandboxError;
use crate::sandbox::init_client::unexpected_reply;
use crate::sandbox::packet::{PacketSocketPair, receive_fd};
use crate::sandbox::pass_through::{FileSystemServer, FileSystemTraits};
use crate::sandbox::protocol::{ControlReply, ControlRequest};

impl Sandbox {
    /// Mounts a file system over a directory of the root. It passes everything on to the directory, but has these
    /// traits. Keep the returned value as long as programs of the sandbox may use it. `mount_point` is relative to the
    /// root.
    ///
    /// # Errors
    /// If there is no such directory, the machine has no FUSE or does not permit it, or init has ended.
    pub fn mount_file_system(
        &self,
        mount_point: &Path,
        traits: FileSystemTraits,
    ) -> Result<FileSystemServer, SandboxError> {
        let sockets = PacketSocketPair::new().map_err(SandboxError::system("make a socket"))?;
        let request = ControlRequest::MountFuse { mount_point: mount_point.into() };
        match self.parts.client.request(&request, &[sockets.theirs.as_raw_fd()])? {
            ControlReply::Done { .. } => {}
            other => return Err(unexpected_reply("mount a file system", other)),
        }
        drop(sockets.theirs);
        let receive = || {
            let received = receive_fd(sockets.ours.as_fd());
            received.map_err(SandboxError::system("receive a descriptor"))?.ok_or(SandboxError::InitGone)
        };
        let (device, directory) = (receive()?, receive()?);
        let path = PathBuf::from(format!("/proc/{}/ns/user", self.init.processes.init_pid));
        let users = File::open(&path).map_err(SandboxError::file("open", &path))?;
        FileSystemServer::start(traits, &device, &directory, &users).inspect_err(|_| {
            let _ = self.unmount_file_system(mount_point);
        })
    }

    /// Unmounts it. Files that are open in it can still be used while it is served.
    ///
    /// # Errors
    /// If the kernel refuses it, or init has ended.
    pub fn unmount_file_system(&self, mount_point: &Path) -> Result<(), SandboxError> {
        self.parts.client.execute(&ControlRequest::UnmountFuse { mount_point: mount_point.into() }).map(drop)
    }
}
