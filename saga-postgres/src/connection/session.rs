//! What a session is like, whatever the defaults of the server, the database and the role are.

use crate::SetupError;
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgPoolOptions};
use std::time::Duration;
use uuid::Uuid;

/// For how long the settings of a connection hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// As long as the connection: it is a session of its own.
    Sessions,
    /// As long as a transaction: a pooler shares sessions between transactions. So each statement has a transaction
    /// with its settings, and none has a name.
    Transactions,
}

/// The settings that the rules of this crate stand on. They are set by SQL and looked at afterwards: a pooler refuses
/// or ignores those that come with the connection.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    values: Vec<(&'static str, String)>,
}

impl Settings {
    /// A lock that somebody's open transaction holds must not hold up a batch; a statement that nobody waits for must
    /// end. Statements are planned once for a while, by indexes: a plan made while the tables were empty is used when
    /// they are no more. Where there is no index (the handful of workers) the price that this puts on a scan would have
    /// it compiled, for a fifth of a second.
    pub(crate) fn of_the_store() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(30), None)
    }

    /// A relay waits for an operator's verb, ends when it is silent for a lease, and does not wait for the disk: what a
    /// crash brings back is a repeat.
    ///
    /// It reads by the order of its indexes, from where it was. What it asks them for is mostly known to no statistics:
    /// taken for little, it would be read as a whole and sorted.
    pub(crate) fn of_a_relay(lease: Duration) -> Self {
        let mut settings = Self::new(Duration::from_secs(5), lease, Some("off"));
        settings.values.push(("enable_bitmapscan", "off".into()));
        settings
    }

    fn new(lock: Duration, silence: Duration, synchronous_commit: Option<&str>) -> Self {
        let millis = |time: Duration| time.as_millis().max(1).to_string();
        let mut values = vec![
            // Each rule is argued for this level, in which a statement sees what was committed before it.
            ("default_transaction_isolation", "read committed".into()),
            ("lock_timeout", millis(lock)),
            ("statement_timeout", "30000".into()),
            ("idle_in_transaction_session_timeout", millis(silence)),
            // Ours wait in a pool.
            ("idle_session_timeout", "0".into()),
            // Rows that cannot be seen are an error, and not "nothing to do".
            ("row_security", "off".into()),
            ("plan_cache_mode", "force_generic_plan".into()),
            // A plan may be made while the tables are empty, when to read all of one looks cheap. Each statement is
            // written to go from row to row, by the keys.
            ("enable_seqscan", "off".into()),
            ("enable_hashjoin", "off".into()),
            ("enable_mergejoin", "off".into()),
            ("jit", "off".into()),
            // A client that is gone is noticed by the server too.
            ("tcp_keepalives_idle", "30".into()),
            ("tcp_keepalives_interval", "10".into()),
            ("tcp_keepalives_count", "3".into()),
            ("tcp_user_timeout", "60000".into()),
        ];
        values.extend(synchronous_commit.map(|value| ("synchronous_commit", value.into())));
        Self { values }
    }

    /// Sets up the sessions of a pool that the library of connections makes.
    pub(crate) fn on(&self, pool: PgPoolOptions) -> PgPoolOptions {
        let settings = self.clone();
        pool.after_connect(move |connection, _| {
            let settings = settings.clone();
            Box::pin(async move { settings.set(connection).await })
        })
    }

    /// Sets up a session.
    pub(crate) async fn set(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let version = connection.server_version_num().unwrap_or_default();
        let set = self.all(version).map(|(name, value)| format!("set_config('{name}', {value}, false)"));
        let set = format!("SELECT {}", set.collect::<Vec<_>>().join(", "));
        sqlx::raw_sql(AssertSqlSafe(set)).execute(connection).await.map(drop)
    }

    /// Sets up a session and makes sure that it stays so. Answers with what it is known by.
    ///
    /// # Errors
    /// [`SetupError::ReadOnly`]; [`SetupError::Pooler`] when the settings are gone right after they were made; what
    /// Postgres says.
    pub(crate) async fn set_up(&self, connection: &mut PgConnection, address: &str) -> Result<Mark, SetupError> {
        let mark = Mark(Uuid::new_v4().simple().to_string());
        self.set(connection).await?;
        let set = format!("SELECT set_config('saga.session', '{}', false)", mark.0);
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *connection).await?;
        mark.holds(connection, address).await?;
        Ok(mark)
    }

    /// Opens a transaction with these settings.
    pub(crate) fn begin(&self, version: u32) -> String {
        let set = self.all(version).map(|(name, value)| format!("set_config('{name}', {value}, true)"));
        format!("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {}", set.collect::<Vec<_>>().join(", "))
    }

    /// Names and expressions, for a server of this version.
    fn all(&self, version: u32) -> impl Iterator<Item = (&'static str, String)> {
        let own = self.values.iter().map(|(name, value)| (*name, format!("'{value}'")));
        let commit = ("synchronous_commit", "replace(current_setting('synchronous_commit'), 'off', 'on')".to_owned());
        let is_set = self.values.iter().any(|(name, _)| *name == commit.0);
        // What was acknowledged has to survive a crash of the server, whatever the role's default is.
        let commit = Some(commit).filter(|_| !is_set);
        let transaction = Some(("transaction_timeout", "'0'".to_owned())).filter(|_| version >= 170_000);
        own.chain(commit).chain(transaction)
    }
}

/// What a session is known by: a setting that is nobody else's.
#[derive(Clone, Debug)]
pub(crate) struct Mark(String);

impl Mark {
    /// Whether the connection still is this session, at a server that can write.
    pub(crate) async fn holds(&self, connection: &mut PgConnection, address: &str) -> Result<(), SetupError> {
        let look =
            format!("SELECT current_setting('saga.session', true) = '{}' AS same, {READ_ONLY} AS read_only", self.0);
        let row = sqlx::raw_sql(AssertSqlSafe(look)).fetch_one(connection).await?;
        if row.try_get("read_only")? {
            return Err(SetupError::ReadOnly { address: address.into() });
        }
        match row.try_get::<Option<bool>, _>("same")? {
            Some(true) => Ok(()),
            _ => Err(SetupError::Pooler { address: address.into() }),
        }
    }
}

const READ_ONLY: &str = "pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";

/// Whether the server can write.
pub(crate) async fn can_write(connection: &mut PgConnection, address: &str) -> Result<(), SetupError> {
    let look = format!("SELECT {READ_ONLY} AS read_only");
    let row = sqlx::raw_sql(AssertSqlSafe(look)).fetch_one(connection).await?;
    if row.try_get("read_only")? {
        return Err(SetupError::ReadOnly { address: address.into() });
    }
    Ok(())
}

/// Whether two connections are the same process at the server although both are open: a pooler shares sessions between
/// transactions. Tried with the second one in a transaction, which the pooler gives the session that the first one just
/// left.
pub(crate) async fn share_a_session(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, SetupError> {
    const WHO: &str = "SELECT pg_backend_pid() AS pid";
    let pid = async |connection: &mut PgConnection| {
        let row = sqlx::raw_sql(WHO).fetch_one(connection).await?;
        row.try_get::<i32, _>("pid")
    };
    // Some poolers deal their sessions out in turn.
    let (first, second) = (pid(one).await?, pid(one).await?);
    // The role's patience with an open transaction may be shorter than the way to the server.
    sqlx::raw_sql("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *other).await?;
    // Not asked before the third: a pooler that has one session alone has none left for that.
    let theirs = pid(other).await?;
    let shared = first != second || [first, second].contains(&theirs) || pid(one).await? != first;
    sqlx::raw_sql("ROLLBACK").execute(&mut *other).await?;
    Ok(shared)
}
