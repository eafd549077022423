//! What Postgres itself can do with the same rows, by pgbench.

use std::{io::Write, path::PathBuf, process::Stdio, time::Duration};
use tokio::process::Command;

/// Scripts per second.
pub(crate) async fn measure(url: &str, schema: &str, script: &str, connections: usize, time: Duration) -> f64 {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(script.replace("{schema}", schema).as_bytes()).expect("room for a script");
    let output = Command::new(pgbench())
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .arg(format!("--client={connections}"))
        .arg(format!("--time={}", time.as_secs()))
        .arg(format!("--file={}", file.path().display()))
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("pgbench, which comes with Postgres's server package");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let figure = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    figure.unwrap_or_else(|| panic!("pgbench failed:\n{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// From PATH, else the newest below Debian's place.
fn pgbench() -> PathBuf {
    let mut debian: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin/pgbench"))
        .filter(|pgbench| pgbench.exists())
        .collect();
    debian.sort();
    debian.pop().unwrap_or_else(|| "pgbench".into())
}
