//! Before the start: is all there that will be needed? What is missing is better said at once than by the first saga.

use crate::{
    SetupError,
    connection::{Opened, Route},
    error::told,
    migrations::Standing,
};
use sqlx::{AssertSqlSafe, SqlStr};

/// Looks whether a schema is at this release, and goes through statements without doing anything: each is planned, and
/// its rights are checked, as if it were to run. On a connection of its own, which is handed on in an open transaction
/// for what else is to be tried.
///
/// # Errors
/// [`SetupError::NotMigrated`], [`SetupError::TooNew`], [`SetupError::Rights`]; when there is no connection to be had,
/// and what else Postgres says.
pub(crate) async fn of(
    route: &Route,
    schema: &str,
    statements: impl Iterator<Item = (&'static str, &SqlStr)> + Send,
) -> Result<Opened, SetupError> {
    let mut opened = route.open().await?;
    let begin = opened.begin(route.settings());
    let connection = opened.connection();
    sqlx::raw_sql(begin).execute(&mut *connection).await?;
    let standing =
        Standing::read(connection, schema).await.map_err(|error| meaning(error, schema, "saga_migration"))?;
    standing.is_known(schema)?;
    let missing = standing.missing();
    if !missing.is_empty() {
        let missing = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(SetupError::NotMigrated { schema: schema.into(), missing });
    }
    for (name, sql) in statements {
        let sql = sql.as_str();
        let arguments = (1..).take_while(|n| sql.contains(&format!("${n}"))).map(|_| "NULL").collect::<Vec<_>>();
        let arguments = if arguments.is_empty() { String::new() } else { format!("({})", arguments.join(", ")) };
        let tried = format!(
            "PREPARE saga_rehearsal AS {sql}\n; EXPLAIN EXECUTE saga_rehearsal{arguments}; DEALLOCATE saga_rehearsal"
        );
        let tried = sqlx::raw_sql(AssertSqlSafe(tried)).execute(&mut *connection).await;
        tried.map_err(|error| meaning(error, schema, name))?;
    }
    Ok(opened)
}

/// What an error says about the schema.
pub(crate) fn meaning(error: sqlx::Error, schema: &str, statement: &str) -> SetupError {
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
    let (schema, reason) = (schema.to_owned(), format!("{} in `{statement}`", told(&error)));
    match code.as_str() {
        "42501" => SetupError::Rights { schema, reason },
        // A table, a column, a function, a schema.
        "42P01" | "42703" | "42883" | "3F000" => SetupError::NotMigrated { schema, missing: reason },
        _ => SetupError::Postgres { reason, source: error },
    }
}
