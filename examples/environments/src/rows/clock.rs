//! The server's clock jumps, as after a failover to a machine whose clock is wrong. A node dies just before.

use super::{Row, Story};
use crate::{
    Result,
    place::Place,
    program::open_directory,
    stage::{STARTS_WITHIN, Stage},
    world::World,
};
use saga_postgres::testing::Postgres;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

pub const ROWS: &[Row] = &[
    Row { environment: "the server's clock, an hour back", short: true, run: |world| Box::pin(jump(world, "-3600")) },
    Row {
        environment: "the server's clock, an hour forward",
        short: true,
        run: |world| Box::pin(jump(world, "+3600")),
    },
];

async fn jump(world: &World, seconds: &str) -> Result<Story> {
    let directory = open_directory()?;
    let clock = Clock::set(directory.path().join("clock"), "+0")?;
    let postgres = Postgres::builder().binaries(clock.programs(directory.path())?).start().await?;
    let mut stage = Stage::open(world, Place::server(postgres.url()), &postgres.url()).await?;
    stage.migrate().await?;
    for _ in 0..3 {
        stage.node().await?;
    }
    stage.books.until_promised(30, STARTS_WITHIN).await?;
    stage.kill_last().await?;
    clock.jump(seconds)?;
    Ok(Story::rough("three nodes, one killed just before", stage.finish().await?))
}

/// What a server under libfaketime takes for the time: so many seconds more or less, as a file says.
struct Clock(PathBuf);

impl Clock {
    fn set(file: PathBuf, seconds: &str) -> Result<Self> {
        let clock = Self(file);
        clock.jump(seconds)?;
        Ok(clock)
    }

    fn jump(&self, seconds: &str) -> Result<()> {
        // In one go: the server reads it at every look at the clock.
        let new = self.0.with_extension("new");
        fs::write(&new, seconds)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644))?;
        Ok(fs::rename(new, &self.0)?)
    }

    /// A directory with programs that call the real ones, the server with this clock.
    fn programs(&self, directory: &Path) -> Result<PathBuf> {
        let real = crate::standby::programs()?;
        let script = format!(
            "#!/bin/sh\nexport LD_PRELOAD='{}' FAKETIME_TIMESTAMP_FILE='{}' FAKETIME_NO_CACHE=1 DONT_FAKE_MONOTONIC=1\nexec '{}' \"$@\"\n",
            library()?.display(),
            self.0.display(),
            real.join("postgres").display()
        );
        let bin = directory.join("bin");
        fs::create_dir(&bin)?;
        fs::write(bin.join("postgres"), script)?;
        fs::set_permissions(bin.join("postgres"), fs::Permissions::from_mode(0o755))?;
        symlink(real.join("initdb"), bin.join("initdb"))?;
        Ok(bin)
    }
}

/// Where Debian's package puts it.
fn library() -> Result<PathBuf> {
    let places = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    places.into_iter().find(|path| path.exists()).ok_or_else(|| "libfaketime is not there".into())
}
