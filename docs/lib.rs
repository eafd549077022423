//! The code blocks of the guide and of the README, compiled and run as doctests: `cargo test -p guide`.
//!
//! Those that need a Postgres take the one in `DATABASE_URL`, else a throw-away one.
#![allow(clippy::test_attr_in_doctest, reason = "the guide shows whole test files")]

#[doc = include_str!("../README.md")]
pub mod readme {}

#[doc = include_str!("src/introduction.md")]
pub mod introduction {}

#[doc = include_str!("src/first-saga.md")]
pub mod first_saga {}

#[doc = include_str!("src/steps.md")]
pub mod steps {}

#[doc = include_str!("src/kafka.md")]
pub mod kafka {}

#[doc = include_str!("src/messages.md")]
pub mod messages {}

#[doc = include_str!("src/promises.md")]
pub mod promises {}

#[doc = include_str!("src/operations.md")]
pub mod operations {}

#[doc = include_str!("src/environments.md")]
pub mod environments {}

#[doc = include_str!("src/observability.md")]
pub mod observability {}

#[allow(missing_docs, reason = "shown in the guide, which says the rest")]
pub mod shop;

#[cfg(test)]
mod tests {
    /// Later pages work with the saga of the first one.
    #[test]
    fn the_first_page_shows_the_saga_that_the_other_pages_use() {
        assert!(include_str!("src/first-saga.md").contains(include_str!("shop.rs")));
    }

    /// The README begins as the guide does.
    #[test]
    fn the_readme_and_the_introduction_show_the_same_saga() {
        let code = |page: &'static str| page.split("```").find(|block| block.starts_with("rust")).map(str::to_owned);
        assert_eq!(code(include_str!("../README.md")), code(include_str!("src/introduction.md")));
    }
}
