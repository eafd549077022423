//! The way to the primary.

use super::{
    Lent,
    session::{Keeps, Mark, Settings, can_write, share_a_session},
};
use crate::{SetupError, error::told};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// How long a second connection is waited for.
const A_WHILE: Duration = Duration::from_secs(2);
const LOOKS: u32 = 3;
const A_MOMENT: Duration = Duration::from_millis(50);

/// How to come to a session of ours: at the first of these servers that can write.
#[derive(Debug)]
pub(crate) struct Route {
    servers: Vec<PgConnectOptions>,
    settings: Settings,
    keeps: Keeps,
    patience: Duration,
    /// The one that was the primary when it was last looked for.
    last: AtomicUsize,
}

/// A connection is replaced when it is so old: what a switch-over left behind does not stay for ever.
const LIFETIME: Duration = Duration::from_secs(600);
/// A connection that was looked at within this time is used without another look.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Its statements are planned anew after `LOOK_AFTER` at first, then after twice as long each time, up to this. A plan
/// is made for tables of the size that they have then. If they were known to be empty, it may read all of them for each
/// row that it looks up, and it would be kept until their statistics are made anew.
const PLANS_LAST: Duration = Duration::from_secs(30);
/// How long a look may take. A connection that leads nowhere is found out by this.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// A connection that was made, and what it is known by.
pub(crate) struct Opened {
    connection: PgConnection,
    /// `None` where sessions do not last.
    mark: Option<Mark>,
    address: String,
    since: Instant,
    looked: Instant,
    /// When its statements are planned anew, and for how long those plans are good.
    replan_at: Instant,
    plans_last: Duration,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("address", &self.address).field("since", &self.since).finish_non_exhaustive()
    }
}

impl Route {
    pub(crate) const fn new(
        servers: Vec<PgConnectOptions>,
        settings: Settings,
        keeps: Keeps,
        patience: Duration,
    ) -> Self {
        Self { servers, settings, keeps, patience, last: AtomicUsize::new(0) }
    }

    /// The way that a user's connections go, which may lead through any pooler.
    ///
    /// # Errors
    /// When there is no connection to be had.
    pub(crate) async fn of_a_user(server: PgConnectOptions, settings: Settings) -> Result<Self, SetupError> {
        let route = Self::new(vec![server], settings, Keeps::Sessions, Lent::PATIENCE);
        let keeps = route.explore().await?;
        Ok(Self { keeps, ..route })
    }

    pub(crate) const fn keeps(&self) -> Keeps {
        self.keeps
    }

    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Opens a connection to the primary. Each server has its share of the patience.
    pub(crate) async fn open(&self) -> Result<Opened, SetupError> {
        let (first, count) = (self.last.load(Ordering::Relaxed), self.servers.len());
        let mut refusals = vec![];
        for place in (first..first + count).map(|place| place % count) {
            let share = self.patience / u32::try_from(count).unwrap_or(1);
            let address = address(&self.servers[place]);
            let late = |_| Err(SetupError::Unreachable { address, reason: format!("no answer within {share:?}") });
            match timeout(share, self.open_at(place)).await.unwrap_or_else(late) {
                Ok(opened) => {
                    self.last.store(place, Ordering::Relaxed);
                    return Ok(opened);
                }
                Err(error) => refusals.push(error),
            }
        }
        Err(none_of(refusals))
    }

    async fn open_at(&self, place: usize) -> Result<Opened, SetupError> {
        let server = &self.servers[place];
        let address = address(server);
        let connection = connect(server, &address).await?;
        self.set_up(connection, address).await
    }

    async fn set_up(&self, mut connection: PgConnection, address: String) -> Result<Opened, SetupError> {
        let mark = match self.keeps {
            Keeps::Sessions => Some(self.settings.set_up(&mut connection, &address).await?),
            Keeps::Transactions => {
                can_write(&mut connection, &address).await?;
                None
            }
        };
        let (now, plans_last) = (Instant::now(), LOOK_AFTER);
        Ok(Opened { connection, mark, address, since: now, looked: now, replan_at: now + plans_last, plans_last })
    }

    /// Whether the connections of this route keep their sessions. To be asked before any is set up: what is set in a
    /// session that is shared holds for strangers.
    ///
    /// # Errors
    /// When there is no connection to be had.
    async fn explore(&self) -> Result<Keeps, SetupError> {
        let mut refusals = vec![];
        for server in &self.servers {
            let (address, share) = (address(server), self.patience / u32::try_from(self.servers.len()).unwrap_or(1));
            let late =
                SetupError::Unreachable { address: address.clone(), reason: format!("no answer within {share:?}") };
            match timeout(share, explored(server, &address)).await.unwrap_or(Err(late)) {
                Ok(keeps) => return Ok(keeps),
                Err(error) => refusals.push(error),
            }
        }
        Err(none_of(refusals))
    }

    /// # Errors
    /// [`SetupError::Pooler`] if the connections do not keep their sessions; when there is no connection to be had.
    pub(crate) async fn must_keep_sessions(&self) -> Result<(), SetupError> {
        match self.explore().await? {
            Keeps::Sessions => Ok(()),
            Keeps::Transactions => Err(SetupError::Pooler { address: address(self.server()) }),
        }
    }

    /// The server that is the primary now.
    pub(crate) async fn primary(&self) -> Result<PgConnectOptions, SetupError> {
        drop(self.open().await?);
        Ok(self.servers[self.last.load(Ordering::Relaxed)].clone())
    }

    /// The server that was the primary when it was last looked for.
    pub(crate) fn server(&self) -> &PgConnectOptions {
        &self.servers[self.last.load(Ordering::Relaxed)]
    }
}

/// A connection that was closed a moment ago, by this process itself, may still count at the server.
async fn connect(server: &PgConnectOptions, address: &str) -> Result<PgConnection, SetupError> {
    let began = Instant::now();
    loop {
        match PgConnection::connect_with(server).await {
            Ok(connection) => return Ok(connection),
            Err(error) if is_full(&error) && began.elapsed() < A_WHILE => sleep(A_MOMENT).await,
            Err(error) => return Err(SetupError::Unreachable { address: address.into(), reason: told(&error) }),
        }
    }
}

/// Whether the server, the database or the role has no place for another connection.
fn is_full(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("53300"))
}

/// A connection that ends while it is looked at says nothing: the role's patience with one that is idle may be short.
async fn explored(server: &PgConnectOptions, address: &str) -> Result<Keeps, SetupError> {
    for _ in 0..LOOKS {
        match keeps(server, address).await {
            Err(SetupError::Postgres { .. }) => sleep(A_MOMENT).await,
            known => return known,
        }
    }
    keeps(server, address).await
}

async fn keeps(server: &PgConnectOptions, address: &str) -> Result<Keeps, SetupError> {
    let began = Instant::now();
    let mut one = connect(server, address).await?;
    // A way that is long for the first one is so for the second one.
    let a_while = A_WHILE.max(4 * began.elapsed());
    // A server with room for one connection alone cannot have a pooler's sessions.
    let other = timeout(a_while, PgConnection::connect_with(server)).await;
    let Ok(Ok(mut other)) = other else { return Ok(Keeps::Sessions) };
    // In session mode the second one may have to wait for a session until the first one leaves.
    match timeout(a_while, share_a_session(&mut one, &mut other)).await {
        Ok(Ok(true)) => Ok(Keeps::Transactions),
        Ok(Ok(false)) | Err(_) => Ok(Keeps::Sessions),
        Ok(Err(SetupError::Postgres { reason, .. })) if reason.contains("statement pooling") => {
            let reason =
                format!("a pooler between shares sessions between statements ({reason}): give the server's own URL");
            Err(SetupError::Unreachable { address: address.into(), reason })
        }
        Ok(Err(error)) => Err(error),
    }
}

fn none_of(mut refusals: Vec<SetupError>) -> SetupError {
    match refusals.len() {
        1 => refusals.remove(0),
        _ => SetupError::NoPrimary { reasons: refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ") },
    }
}

impl Opened {
    /// Makes sure, if that was not done just before, that it still is what it was when it was made. `false` when it is
    /// so old that it is to be replaced.
    ///
    /// # Errors
    /// [`SetupError::ReadOnly`], [`SetupError::Pooler`], what Postgres says; [`SetupError::Unreachable`] when there is
    /// no answer.
    pub(crate) async fn still_holds(&mut self) -> Result<bool, SetupError> {
        if self.since.elapsed() > LIFETIME {
            return Ok(false);
        }
        if self.looked.elapsed() >= LOOK_AFTER {
            let looked = timeout(LOOK_WITHIN, self.look()).await;
            looked.unwrap_or_else(|_| {
                let reason = format!("no answer within {LOOK_WITHIN:?}");
                Err(SetupError::Unreachable { address: self.address.clone(), reason })
            })?;
            self.looked = Instant::now();
        }
        Ok(true)
    }

    async fn look(&mut self) -> Result<(), SetupError> {
        let Some(mark) = &self.mark else { return can_write(&mut self.connection, &self.address).await };
        mark.holds(&mut self.connection, &self.address).await?;
        // Where sessions do not last, statements have no names, and are planned each time.
        if Instant::now() >= self.replan_at {
            sqlx::raw_sql("DISCARD PLANS").execute(&mut self.connection).await?;
            self.plans_last = (2 * self.plans_last).min(PLANS_LAST);
            self.replan_at = Instant::now() + self.plans_last;
        }
        Ok(())
    }

    /// When it was last known to be right.
    pub(super) const fn looked(&self) -> Instant {
        self.looked
    }

    /// What opens a transaction with the route's settings.
    pub(crate) fn begin(&self, settings: &Settings) -> AssertSqlSafe<String> {
        AssertSqlSafe(settings.begin(self.connection.server_version_num().unwrap_or_default()))
    }

    pub(crate) const fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

fn address(server: &PgConnectOptions) -> String {
    match server.get_socket() {
        Some(socket) => format!("{}", socket.display()),
        None => format!("{}:{}", server.get_host(), server.get_port()),
    }
}

/// The servers of a URL, which may name several:
/// `postgres://user@one:5432,two:5432/database?target_session_attrs=read-write`, as libpq has it
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>).
pub(crate) fn servers(url: &str) -> Result<Vec<PgConnectOptions>, SetupError> {
    let malformed = |reason: String| SetupError::Url { reason };
    let (scheme, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "postgres" | "postgresql"))
        .ok_or_else(|| malformed("it does not begin with `postgres://`".into()))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let path = for_the_primary(path)?;
    let server = |host: &str| {
        let one = format!("{scheme}://{user}{host}{path}");
        // Poolers refuse this one; nothing here is read as text.
        let options = PgConnectOptions::from_str(&one).map(|options| options.extra_float_digits(None));
        options.map_err(|error| malformed(told(&error)))
    };
    hosts.split(',').map(server).collect()
}

/// A URL's path and parameters, without the one that says which server is wanted.
fn for_the_primary(path: &str) -> Result<String, SetupError> {
    let Some((path, parameters)) = path.split_once('?') else { return Ok(path.into()) };
    let mut kept = vec![];
    for parameter in parameters.split('&') {
        match parameter.split_once('=') {
            Some(("target_session_attrs", "read-write" | "primary")) => {}
            Some(("target_session_attrs", other)) => {
                let reason = format!("`target_session_attrs={other}`: sagas need the primary, write `read-write`");
                return Err(SetupError::Url { reason });
            }
            Some(("host" | "hostaddr" | "port", several)) if several.contains(',') => {
                let reason =
                    "several hosts are written before the path: `postgres://one:5432,two:5432/database`".into();
                return Err(SetupError::Url { reason });
            }
            _ => kept.push(parameter),
        }
    }
    Ok(if kept.is_empty() { path.into() } else { format!("{path}?{}", kept.join("&")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(url: &str) -> Result<Vec<String>, String> {
        servers(url).map(|all| all.iter().map(address).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_may_name_several_servers() {
        let url = "postgres://app:se,cret@one:5433,two,[::1]:5434/shop?target_session_attrs=read-write&sslmode=disable";
        assert_eq!(addresses(url).unwrap(), ["one:5433", "two:5432", "[::1]:5434"]);
        let all = servers(url).unwrap();
        assert!(all.iter().all(|one| one.get_database() == Some("shop") && one.get_username() == "app"));
    }

    #[test]
    fn what_is_no_way_to_a_primary_is_refused_in_words() {
        for (url, said) in [
            ("mysql://one/shop", "postgres://"),
            ("postgres://one,two/shop?target_session_attrs=standby", "primary"),
            ("postgres:///shop?host=one,two", "before the path"),
            ("postgres://one:port/shop", "port"),
        ] {
            let refused = addresses(url).unwrap_err();
            assert!(refused.contains(said), "{url}: {refused}");
        }
    }
}
