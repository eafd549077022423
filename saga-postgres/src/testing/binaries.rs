//! Where `initdb` and `postgres` are.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::StartError;

/// Where packages put Postgres outside PATH. In the last part but one, `*` stands for a version.
const USUAL_PLACES: &[&str] = &[
    "/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
    "/usr/pgsql-*/bin",                   // Red Hat, from postgresql.org
    "/usr/libexec/postgresql*",           // Alpine
    "/usr/local/pgsql/bin",               // built from source
    "/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple silicon
    "/opt/homebrew/opt/postgresql/bin",
    "/usr/local/opt/postgresql@*/bin", // Homebrew on Intel
    "/usr/local/opt/postgresql/bin",
    "/opt/local/lib/postgresql*/bin", // MacPorts
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// The programs that make and run a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

impl Binaries {
    /// Looks in PATH first, then in the usual places, the highest version first.
    pub(super) fn find() -> Result<Self, StartError> {
        Self::find_in(std::env::var_os("PATH").as_deref(), USUAL_PLACES)
    }

    /// Looks in this directory only.
    pub(super) fn in_directory(directory: &Path) -> Result<Self, StartError> {
        Self::first_of(vec![directory.to_owned()])
    }

    fn find_in(path: Option<&OsStr>, places: &[&str]) -> Result<Self, StartError> {
        let mut directories: Vec<PathBuf> =
            path.map(|path| std::env::split_paths(path).filter(|dir| dir.is_absolute()).collect()).unwrap_or_default();
        directories.extend(places.iter().flat_map(|place| versions_of(place)));
        Self::first_of(directories)
    }

    fn first_of(searched: Vec<PathBuf>) -> Result<Self, StartError> {
        searched
            .iter()
            .map(|dir| Self { initdb: dir.join("initdb"), postgres: dir.join("postgres") })
            .find(|found| is_program(&found.initdb) && is_program(&found.postgres))
            .ok_or(StartError::BinariesNotFound { searched })
    }
}

/// The directories a place with a `*` stands for, the highest version first.
/// One that matches nothing stays as it is, so that the error shows that it was looked at.
fn versions_of(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else {
        return vec![PathBuf::from(place)];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let mut found: Vec<(Vec<u32>, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?;
            let numbers = version.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
            Some((numbers, PathBuf::from(format!("{before}{version}{after}"))))
        })
        .collect();
    found.sort_by_key(|(numbers, _)| Reverse(numbers.clone()));
    if found.is_empty() {
        return vec![PathBuf::from(place)];
    }
    found.into_iter().map(|(_, directory)| directory).collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn install(directory: &Path, programs: &[&str]) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        for program in programs {
            fs::write(directory.join(program), "#!/bin/sh\n")?;
            fs::set_permissions(directory.join(program), fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    fn find_in(path: &[&Path], place: &Path) -> Result<Option<PathBuf>, Box<dyn std::error::Error>> {
        let path = std::env::join_paths(path)?;
        let found = Binaries::find_in(Some(&path), &[&place.display().to_string()])?;
        Ok(found.postgres.parent().map(Path::to_owned))
    }

    #[test]
    fn path_comes_before_the_usual_places() -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        let (in_path, usual) = (root.path().join("in_path"), root.path().join("lib/17/bin"));
        install(&in_path, &["initdb", "postgres"])?;
        install(&usual, &["initdb", "postgres"])?;
        assert_eq!(find_in(&[&in_path], &root.path().join("lib/*/bin"))?, Some(in_path));
        Ok(())
    }

    #[test]
    fn a_directory_with_only_one_of_the_programs_is_passed_over() -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        let (half, whole) = (root.path().join("half"), root.path().join("whole"));
        install(&half, &["postgres"])?;
        install(&whole, &["initdb", "postgres"])?;
        assert_eq!(find_in(&[&half, &whole], Path::new("/nowhere"))?, Some(whole));
        Ok(())
    }

    #[test]
    fn the_highest_version_wins_by_number_not_by_text() -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        for version in ["9.6", "16", "9", "notes"] {
            install(&root.path().join(version).join("bin"), &["initdb", "postgres"])?;
        }
        assert_eq!(find_in(&[], &root.path().join("*/bin"))?, Some(root.path().join("16/bin")));
        Ok(())
    }

    #[test]
    fn missing_programs_give_an_error_that_says_how_to_get_them() {
        let error = Binaries::find_in(Some(OsStr::new("/nowhere/bin")), &["/nowhere/lib/*/bin"])
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        for hint in ["apt-get install postgresql", "DATABASE_URL", "/nowhere/bin", "/nowhere/lib/*/bin"] {
            assert!(error.contains(hint), "{hint} is not in: {error}");
        }
    }
}
