//! Connection URLs that differ in their database.

use std::{os::unix::ffi::OsStrExt, path::Path};

/// The same server, user and options, another database.
pub(super) fn with_database(url: &str, database: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let authority = base.find("://").map_or(0, |scheme| scheme + 3);
    let end = base[authority..].find('/').map_or(base.len(), |slash| authority + slash);
    // `dbname` in the query would win over the path.
    let options: Vec<_> = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("dbname=")).collect();
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{}/{}{mark}{}", &base[..end], percent_encoded(database), options.join("&"))
}

/// The same, through the Unix socket in a directory.
pub(super) fn with_socket(url: &str, directory: &Path) -> String {
    let mark = if url.contains('?') { '&' } else { '?' };
    format!("{url}{mark}host={}", percent_encoded(directory.as_os_str().as_bytes()))
}

fn percent_encoded(name: impl AsRef<[u8]>) -> String {
    name.as_ref()
        .iter()
        .map(|&byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{with_database, with_socket};
    use sqlx::postgres::PgConnectOptions;
    use std::path::Path;

    #[test]
    fn only_the_database_changes() {
        let changed = |url| with_database(url, "new");
        assert_eq!(changed("postgres://u:p@host:1/old"), "postgres://u:p@host:1/new");
        assert_eq!(changed("postgres://u@host"), "postgres://u@host/new");
        assert_eq!(changed("postgres://host/old?sslmode=disable"), "postgres://host/new?sslmode=disable");
        assert_eq!(changed("postgres://host/?dbname=old&a=b"), "postgres://host/new?a=b");
    }

    #[test]
    fn a_socket_wins_over_the_host() {
        let url = with_socket("postgres://postgres@127.0.0.1:1/shop", Path::new("/tmp/a b"));
        assert_eq!(url, "postgres://postgres@127.0.0.1:1/shop?host=%2Ftmp%2Fa%20b");
        let options: PgConnectOptions = url.parse().unwrap();
        assert_eq!(options.get_socket().map(|socket| socket.as_path()), Some(Path::new("/tmp/a b")));
    }

    #[test]
    fn an_odd_name_is_encoded() {
        assert_eq!(with_database("postgres://h/x", "a b/ü"), "postgres://h/a%20b%2F%C3%BC");
    }
}
