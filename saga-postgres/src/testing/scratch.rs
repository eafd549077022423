//! A directory that goes with its handle.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Its name is known before it is made, so that somebody can be told to remove it who outlives this process.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A name in `place` that nobody else has. Short: the path of a socket in it has about a hundred bytes at most.
    pub(super) fn named_in(place: &Path) -> io::Result<Self> {
        let (random, _) = Uuid::new_v4().as_u64_pair();
        Ok(Self(place.canonicalize()?.join(format!("saga-postgres-{random:016x}"))))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it, for this user alone.
    pub(super) fn make(&self) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.0)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, directory = %self.0.display(), "cannot remove the directory of a test server");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_when_it_was_made_and_goes_with_its_handle() {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::named_in(place.path()).unwrap();
        let path = scratch.path().to_owned();
        assert!(!path.exists());
        scratch.make().unwrap();
        fs::write(path.join("file"), "x").unwrap();
        assert!(scratch.make().is_err(), "it is nobody else's");
        drop(scratch);
        assert!(!path.exists());
    }
}
