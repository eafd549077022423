//! What `saga_postgres::testing` promises, the clean-up after a killed process included.
#![cfg(all(feature = "testing", unix))]

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use saga_postgres::testing::{self, Postgres, StartError};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

type Outcome = Result<(), Box<dyn Error>>;

async fn run(postgres: &Postgres, sql: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
    connection.close().await
}

async fn ask(postgres: &Postgres, sql: &str) -> Result<String, sqlx::Error> {
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn data_dir(postgres: &Postgres) -> Result<PathBuf, &'static str> {
    postgres.data_dir().map(Path::to_owned).ok_or("a private server has a data directory")
}

/// Whether it comes true within two minutes.
fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    condition()
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

#[tokio::test]
async fn a_private_server_starts_and_answers() -> Outcome {
    let postgres = Postgres::private().await?;
    assert!(postgres.is_private());
    assert_eq!(postgres.url(), format!("postgres://postgres@127.0.0.1:{}/postgres", postgres.port()));
    assert_eq!(ask(&postgres, "SHOW server_version").await?, postgres.version());
    assert_eq!(ask(&postgres, "SHOW server_encoding").await?, "UTF8");
    postgres.stop().await;
    Ok(())
}

#[tokio::test]
async fn by_default_it_is_durable_and_takes_200_connections() -> Outcome {
    let postgres = Postgres::private().await?;
    for (setting, value) in
        [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on"), ("max_connections", "200")]
    {
        assert_eq!(ask(&postgres, &format!("SHOW {setting}")).await?, value, "{setting}");
    }
    Ok(())
}

#[tokio::test]
async fn settings_and_database_are_as_asked_for() -> Outcome {
    let postgres = Postgres::builder()
        .setting("max_connections", "17")
        .setting("work_mem", "5MB")
        .database("a shop")
        .start()
        .await?;
    assert_eq!(ask(&postgres, "SHOW max_connections").await?, "17");
    assert_eq!(ask(&postgres, "SHOW work_mem").await?, "5MB");
    assert_eq!(ask(&postgres, "SELECT current_database()::text").await?, "a shop");
    Ok(())
}

#[tokio::test]
async fn two_at_once_have_different_ports_and_data() -> Outcome {
    let (one, two) = tokio::try_join!(Postgres::private(), Postgres::private())?;
    assert_ne!(one.port(), two.port());
    assert_ne!(one.data_dir(), two.data_dir());
    run(&one, "CREATE TABLE only_in_one ()").await?;
    assert!(run(&two, "SELECT FROM only_in_one").await.is_err());
    Ok(())
}

#[tokio::test]
async fn creating_a_database_again_changes_nothing() -> Outcome {
    let postgres = Postgres::private().await?;
    let create = || postgres.create_database("orders \"2\"");
    tokio::try_join!(create(), create(), create())?;
    create().await?;
    PgConnection::connect(&postgres.url_for("orders \"2\"")).await?.close().await?;
    Ok(())
}

#[tokio::test]
async fn the_shared_server_is_one_and_schema_names_are_unique() -> Outcome {
    let (one, two) = tokio::try_join!(testing::shared(), testing::shared())?;
    assert!(std::ptr::eq(one, two));
    assert_ne!(one.schema(), two.schema());
    assert!(one.schema().starts_with("saga_"));
    run(one, &format!("CREATE SCHEMA {}", one.schema())).await?;
    Ok(())
}

#[test]
fn the_shared_server_outlives_the_runtime_it_was_started_on() -> Outcome {
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let answer = runtime.block_on(async {
            // On a worker thread, which ends with its runtime.
            tokio::spawn(async { ask(testing::shared().await?, "SELECT 'here'").await.map_err(StartError::Connect) })
                .await
        })??;
        assert_eq!(answer, "here");
    }
    Ok(())
}

#[tokio::test]
async fn a_restart_keeps_port_and_data_and_drops_connections() -> Outcome {
    let mut postgres = Postgres::private().await?;
    run(&postgres, "CREATE TABLE kept AS SELECT 'still here' AS word").await?;
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    let port = postgres.port();
    postgres.restart().await?;
    assert!(connection.ping().await.is_err());
    assert_eq!(postgres.port(), port);
    assert_eq!(ask(&postgres, "SELECT word FROM kept").await?, "still here");
    Ok(())
}

#[tokio::test]
async fn a_crash_keeps_what_was_committed_and_nothing_else() -> Outcome {
    let mut postgres = Postgres::private().await?;
    run(&postgres, "CREATE TABLE kept (word text)").await?;
    run(&postgres, "INSERT INTO kept VALUES ('committed')").await?;
    let mut connection = PgConnection::connect(&postgres.url()).await?;
    sqlx::raw_sql("BEGIN; INSERT INTO kept VALUES ('open')").execute(&mut connection).await?;
    postgres.crash().await?;
    assert!(connection.ping().await.is_err());
    assert_eq!(ask(&postgres, "SELECT string_agg(word, ',') FROM kept").await?, "committed");
    let log = fs::read_to_string(data_dir(&postgres)?.join("server.log"))?;
    assert!(log.contains("automatic recovery in progress"), "it was shut down in order: {log}");
    Ok(())
}

#[tokio::test]
async fn a_given_data_directory_is_kept_and_used_again() -> Outcome {
    let kept = tempfile::tempdir()?;
    let start = || Postgres::builder().data_dir(kept.path()).database("shop").start();
    let first = start().await?;
    run(&first, "CREATE TABLE kept AS SELECT 'from the first' AS word").await?;
    first.stop().await;
    let second = start().await?;
    assert_eq!(ask(&second, "SELECT word FROM kept").await?, "from the first");
    drop(second);
    assert!(kept.path().join("PG_VERSION").exists());
    Ok(())
}

#[tokio::test]
async fn a_data_directory_that_holds_something_else_is_left_alone() -> Outcome {
    let full = tempfile::tempdir()?;
    fs::write(full.path().join("letter"), "dear diary")?;
    let error = Postgres::builder().data_dir(full.path()).start().await.err().ok_or("it started")?;
    assert!(matches!(&error, StartError::Initdb { output, .. } if output.contains("not empty")), "{error}");
    assert_eq!(fs::read_to_string(full.path().join("letter"))?, "dear diary");
    Ok(())
}

#[tokio::test]
async fn dropping_stops_the_server_and_removes_its_directory() -> Outcome {
    let postgres = Postgres::private().await?;
    let _open = PgConnection::connect(&postgres.url()).await?;
    let (port, directory) = (postgres.port(), data_dir(&postgres)?);
    drop(postgres);
    assert!(!listens(port));
    assert!(!directory.exists());
    Ok(())
}

#[test]
fn dropping_works_outside_a_runtime() -> Outcome {
    let postgres = tokio::runtime::Runtime::new()?.block_on(Postgres::private())?;
    let (port, directory) = (postgres.port(), data_dir(&postgres)?);
    drop(postgres);
    assert!(!listens(port));
    assert!(!directory.exists());
    Ok(())
}

#[tokio::test]
async fn a_start_given_up_half_way_leaves_nothing() -> Outcome {
    for milliseconds in [5, 100, 300] {
        let parent = open_directory()?;
        let kept = parent.path().join("data");
        let start = Postgres::builder().data_dir(&kept).start();
        drop(tokio::time::timeout(Duration::from_millis(milliseconds), start).await);
        // Whoever comes next finds the directory empty or whole.
        Postgres::builder().data_dir(&kept).start().await?.stop().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_handle_on_another_server_has_a_database_of_its_own_and_drops_it() -> Outcome {
    let server = Postgres::private().await?;
    let mut guest = Postgres::on(&server.url()).await?;
    assert!(!guest.is_private());
    assert_eq!(guest.port(), server.port());
    assert_eq!(guest.data_dir(), None);
    let name = ask(&guest, "SELECT current_database()::text").await?;
    assert!(name.starts_with("saga_test_"), "{name}");
    assert!(matches!(guest.restart().await, Err(StartError::NotPrivate)));
    let _open = PgConnection::connect(&guest.url()).await?;
    drop(guest);
    let left = ask(&server, "SELECT count(*)::text FROM pg_database WHERE datname LIKE 'saga_test_%'").await?;
    assert_eq!(left, "0");
    Ok(())
}

#[tokio::test]
async fn a_stale_database_on_another_server_is_swept_away_but_nothing_else_is() -> Outcome {
    let server = Postgres::private().await?;
    let stale = "saga_test_018bcfe5680070008000000000000000"; // made in 2023
    let foreign = "saga_test_orders";
    server.create_database(stale).await?;
    server.create_database(foreign).await?;
    let guest = Postgres::on(&server.url()).await?;
    let exists = |name: &'static str| {
        let guest = &guest;
        async move { ask(guest, &format!("SELECT count(*)::text FROM pg_database WHERE datname = '{name}'")).await }
    };
    assert_eq!(exists(stale).await?, "0");
    assert_eq!(exists(foreign).await?, "1");
    guest.stop().await;
    Ok(())
}

#[tokio::test]
async fn missing_programs_give_an_error_that_helps() -> Outcome {
    let error = Postgres::builder().binaries("/nowhere/bin").start().await.err().ok_or("it started")?;
    assert!(matches!(error, StartError::BinariesNotFound { .. }));
    for hint in ["apt-get install postgresql", "DATABASE_URL", "/nowhere/bin"] {
        assert!(error.to_string().contains(hint), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_come_up_shows_its_log() -> Outcome {
    let error = Postgres::builder().setting("max_connections", "many").start().await.err().ok_or("it started")?;
    assert!(matches!(&error, StartError::Exited { log, .. } if log.contains("max_connections")), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_directory_that_the_server_user_cannot_reach_is_named() -> Outcome {
    if !geteuid().is_root() {
        return Ok(()); // the server runs as this very user
    }
    let closed = tempfile::tempdir()?;
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700))?;
    let error = Postgres::builder().data_dir(closed.path().join("data")).start().await.err().ok_or("it started")?;
    assert!(matches!(&error, StartError::OutOfReach { path, .. } if path == closed.path()), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_named() -> Outcome {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let number = taken.local_addr()?.port();
    let error = Postgres::builder().port(number).start().await.err().ok_or("it started")?;
    assert!(matches!(error, StartError::PortTaken { port } if port == number), "{error}");
    Ok(())
}

/// How a process that owns a server may end, and what it did before. The process is this test binary once more,
/// running only the test `owner`.
mod owner {
    use super::*;

    const SHARED: &str = "SAGA_TEST_OWNER_SHARED";
    const KEPT: &str = "SAGA_TEST_OWNER_KEPT";
    const ENDS: &str = "SAGA_TEST_OWNER_ENDS";

    /// Does nothing unless started by one of the tests below.
    #[tokio::test]
    async fn owner() -> Outcome {
        let _private;
        if std::env::var_os(SHARED).is_some() {
            report(testing::shared().await?)?;
        } else if let Some(kept) = std::env::var_os(KEPT) {
            _private = Postgres::builder().data_dir(kept).start().await?;
            report(&_private)?;
        } else {
            return Ok(());
        }
        if std::env::var_os(ENDS).is_none() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Ok(())
    }

    fn report(postgres: &Postgres) -> Outcome {
        let directory = data_dir(postgres)?;
        println!("\nOWNER {} {}", postgres.port(), directory.display());
        Ok(())
    }

    /// A running owner, in a process group of its own as under a terminal.
    struct Owner {
        process: Child,
        output: BufReader<ChildStdout>,
    }

    struct Server {
        port: u16,
        directory: PathBuf,
    }

    impl Owner {
        fn start(variables: &[(&str, &Path)]) -> Result<Self, Box<dyn Error>> {
            let mut process = Command::new(std::env::current_exe()?)
                .args(["--exact", "owner::owner", "--nocapture"])
                .env_remove("DATABASE_URL")
                .envs(variables.iter().copied())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
            let output = BufReader::new(process.stdout.take().ok_or("no output")?);
            Ok(Self { process, output })
        }

        /// What it reports once its server is up.
        fn server(&mut self) -> Result<Server, Box<dyn Error>> {
            for line in self.output.by_ref().lines() {
                if let ["OWNER", port, directory] = line?.split(' ').collect::<Vec<_>>()[..] {
                    return Ok(Server { port: port.parse()?, directory: directory.into() });
                }
            }
            Err("the owner started no server".into())
        }

        /// Sends a signal to its process group, as a terminal does, and waits for it to end.
        fn end(mut self, signal: Signal) -> Outcome {
            kill_process_group(Pid::from_child(&self.process), signal)?;
            self.process.wait()?;
            Ok(())
        }
    }

    /// Whether some process has been told of a directory: initdb, a server, or who cleans up behind them. Nobody knows where there is no `/proc`.
    fn is_at_work_in(directory: &str) -> bool {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut told = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        told.any(|told| String::from_utf8_lossy(&told).contains(directory))
    }

    fn entries(directory: &Path) -> Vec<std::ffi::OsString> {
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
    }

    impl Server {
        fn is_gone(&self) -> bool {
            !listens(self.port) && !self.directory.join("postmaster.pid").exists()
        }
    }

    #[test]
    fn killed_leaves_neither_server_nor_directory() -> Outcome {
        let mut owner = Owner::start(&[(SHARED, Path::new("yes"))])?;
        let server = owner.server()?;
        assert!(!server.is_gone() && server.directory.exists());
        owner.end(Signal::KILL)?;
        assert!(soon(|| server.is_gone() && !server.directory.exists()));
        Ok(())
    }

    #[test]
    fn interrupted_at_the_terminal_leaves_neither_server_nor_directory() -> Outcome {
        let mut owner = Owner::start(&[(SHARED, Path::new("yes"))])?;
        let server = owner.server()?;
        owner.end(Signal::INT)?;
        assert!(soon(|| server.is_gone() && !server.directory.exists()));
        Ok(())
    }

    #[test]
    fn ending_as_usual_leaves_nothing_of_a_shared_server() -> Outcome {
        let mut owner = Owner::start(&[(SHARED, Path::new("yes")), (ENDS, Path::new("yes"))])?;
        let server = owner.server()?;
        assert!(owner.process.wait()?.success());
        assert!(soon(|| server.is_gone() && !server.directory.exists()));
        Ok(())
    }

    #[test]
    fn killed_while_the_server_is_being_made_leaves_nothing() -> Outcome {
        for milliseconds in [20, 60, 100, 200, 300, 400, 500, 600, 700] {
            let temporary = open_directory()?;
            let owner = Owner::start(&[(SHARED, Path::new("yes")), ("TMPDIR", temporary.path())])?;
            std::thread::sleep(Duration::from_millis(milliseconds));
            owner.end(Signal::KILL)?;
            assert!(soon(|| is_empty(temporary.path())), "killed after {milliseconds} ms");
        }
        Ok(())
    }

    #[test]
    fn killed_while_a_given_directory_is_being_made_leaves_it_usable() -> Outcome {
        for milliseconds in [50, 200, 400] {
            let parent = open_directory()?;
            let kept = parent.path().join("data");
            let owner = Owner::start(&[(KEPT, &kept)])?;
            std::thread::sleep(Duration::from_millis(milliseconds));
            owner.end(Signal::KILL)?;
            let undone = || !is_at_work_in(&kept.to_string_lossy());
            assert!(soon(undone) || soon(undone), "killed after {milliseconds} ms, and not cleaned up");
            let left = entries(&kept);
            let next = Owner::start(&[(KEPT, &kept), (ENDS, Path::new("yes"))])?.server();
            assert!(next.is_ok(), "killed after {milliseconds} ms, left {left:?}, now {:?}", entries(&kept));
        }
        Ok(())
    }

    #[test]
    fn killed_keeps_a_given_directory_which_can_be_used_again_at_once() -> Outcome {
        let parent = open_directory()?;
        let kept = parent.path().join("data");
        for _ in 0..2 {
            let mut owner = Owner::start(&[(KEPT, &kept)])?;
            owner.server()?;
            owner.end(Signal::KILL)?;
        }
        let mut last = Owner::start(&[(KEPT, &kept)])?;
        let server = last.server()?;
        last.end(Signal::KILL)?;
        assert!(soon(|| server.is_gone()));
        let log = fs::read_to_string(kept.join("server.log"))?;
        assert!(!log.contains("automatic recovery"), "it was shut down in order each time: {log}");
        Ok(())
    }
}

/// A directory that the server's user can pass through, also when this process is root.
fn open_directory() -> std::io::Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}
