//! The SQL, one statement a file. Each file says what it does and which index serves it.

macro_rules! queries {
    ($queries:ident: $($name:ident)*) => {
        /// Every statement, for one schema. Built once, at start-up.
        #[derive(Debug)]
        pub(crate) struct $queries {
            $(pub(crate) $name: sqlx::SqlStr,)*
        }

        impl $queries {
            /// `edit` may change a statement before it is used: tests show in this way what breaks without a rule.
            pub(crate) fn new(schema: &str, edit: impl Fn(&str, String) -> String) -> Self {
                let built = |name: &str, text: &str| {
                    // The schema's name was checked.
                    let sql: std::sync::Arc<str> = edit(name, crate::migrations::in_schema(text, schema)).into();
                    sqlx::SqlSafeStr::into_sql_str(sqlx::AssertSqlSafe(sql))
                };
                Self { $($name: built(stringify!($name), include_str!(concat!("sql/", stringify!($name), ".sql"))),)* }
            }

            /// Every statement with its name.
            pub(crate) fn all(&self) -> Vec<(&'static str, &sqlx::SqlStr)> {
                vec![$((stringify!($name), &self.$name)),*]
            }
        }
    };
}

pub(crate) use queries;

queries! {
    Queries:
    append append_one change_one append_written
    start start_one start_existing
    claim_due claim_mailed journals unread owned disown
    mail post drop_dead_mail letters_numbered letters_writers
    join beat leave workers bury orphans sweep set_back
    returned_swept returned_left readers
    register registered census unclaimable
    find statuses read
    notify
    inbox_enter inbox_keep inbox_end inbox_prune
}
