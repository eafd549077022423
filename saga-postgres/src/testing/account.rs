//! The user the server runs as: Postgres refuses to run as root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::StartError;

/// A user other than root.
#[derive(Debug, Clone)]
pub(super) struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// Whom to run a new server as: `None` means as this process itself, which is not root.
    pub(super) fn for_new_server() -> Result<Option<Self>, StartError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let known = ["postgres", "nobody"].into_iter().find_map(Self::named);
        known.map(Some).ok_or(StartError::NoServerUser)
    }

    /// Whom to run a server on existing data as: its owner, when this process is root and may choose.
    pub(super) fn owning(data_dir: &Path) -> Result<Option<Self>, StartError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let meta = fs::metadata(data_dir).map_err(StartError::io(format!("read {}", data_dir.display())))?;
        if meta.uid() == 0 {
            return Self::for_new_server();
        }
        Ok(Some(Self { name: meta.uid().to_string(), uid: meta.uid(), gid: meta.gid() }))
    }

    /// Asks `id`, which also knows users that are not in `/etc/passwd`.
    fn named(name: &str) -> Option<Self> {
        let ask = |flag| {
            let output = Command::new("id").args([flag, name]).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
        };
        Some(Self { name: name.to_owned(), uid: ask("-u")?, gid: ask("-g")? })
    }

    /// Makes the command run as this user; supplementary groups are dropped with it.
    pub(super) fn run(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives a directory to this user.
    pub(super) fn own(&self, directory: &Path) -> Result<(), StartError> {
        std::os::unix::fs::chown(directory, Some(self.uid), Some(self.gid)).map_err(StartError::io(format!(
            "give {} to user {}",
            directory.display(),
            self.name
        )))
    }

    /// Whether this user can get at what lies in `directory`; if not, the error names the directory in the way.
    pub(super) fn reaches(&self, directory: &Path) -> Result<(), StartError> {
        match directory.ancestors().find(|dir| !self.passes(dir)) {
            None => Ok(()),
            Some(path) => Err(StartError::OutOfReach { path: PathBuf::from(path), user: self.name.clone() }),
        }
    }

    fn passes(&self, directory: &Path) -> bool {
        fs::metadata(directory).is_ok_and(|meta| {
            let bit = match () {
                () if meta.uid() == self.uid => 0o100,
                () if meta.gid() == self.gid => 0o010,
                () => 0o001,
            };
            meta.mode() & bit != 0
        })
    }
}
