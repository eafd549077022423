use std::{any::Any, error::Error, fmt};

/// What an attempt that did not succeed says about the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Transient, and *nothing happened*: try again.
    Retry,
    /// A business no, and *nothing happened*: trying again would give the same answer.
    Fail,
    /// It *may have happened*: a timeout, a lost connection. Tried again under the same idempotency key.
    Unknown,
}

/// Why a step or a compensation did not succeed.
///
/// It is deliberately not a [`std::error::Error`] itself, so that every error turns into it by `?`. An error that
/// comes in that way is *unclassified*: [`Saga::classify`](crate::Saga::classify) may know it, and otherwise its
/// class is [`Class::Unknown`], because only the author of the call can say that nothing happened.
///
/// ```
/// use saga_core::{Class, OrClass, StepError};
///
/// fn quantity(text: &str) -> Result<u32, StepError> {
///     let quantity: u32 = text.parse().or_fail()?; // a business no
///     if quantity == 0 {
///         return Err(StepError::fail("an order needs a quantity"));
///     }
///     Ok(quantity)
/// }
/// assert_eq!(quantity("0").unwrap_err().class(), Some(Class::Fail));
/// ```
pub struct StepError {
    class: Option<Class>,
    source: Box<dyn Error + Send + Sync>,
}

impl StepError {
    /// Transient, and nothing happened. See [`Class::Retry`].
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: Some(Class::Retry), source: error.into() }
    }

    /// A business no, and nothing happened. See [`Class::Fail`].
    pub fn fail(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: Some(Class::Fail), source: error.into() }
    }

    /// It may have happened. See [`Class::Unknown`].
    pub fn unknown(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class: Some(Class::Unknown), source: error.into() }
    }

    /// The class that the author gave, if any.
    pub const fn class(&self) -> Option<Class> {
        self.class
    }

    /// The error as it came.
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.source
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for StepError {
    fn from(error: E) -> Self {
        Self { class: None, source: Box::new(error) }
    }
}

impl fmt::Debug for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.class {
            Some(class) => write!(f, "{class:?}: {self}"),
            None => write!(f, "unclassified: {self}"),
        }
    }
}

/// The error and its sources, outermost first: what the journal keeps.
impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        let mut inner = self.source.source();
        while let Some(error) = inner {
            write!(f, ": {error}")?;
            inner = error.source();
        }
        Ok(())
    }
}

/// Gives an error its class where it occurs.
pub trait OrClass<T, E>: Sized {
    /// The class depends on the error.
    ///
    /// # Errors
    /// The error, classified.
    fn classify(self, by: impl FnOnce(&E) -> Class) -> Result<T, StepError>;

    /// Every error of this call is transient, and nothing happened.
    ///
    /// # Errors
    /// The error, as [`Class::Retry`].
    fn or_retry(self) -> Result<T, StepError> {
        self.classify(|_| Class::Retry)
    }

    /// Every error of this call is a business no, and nothing happened.
    ///
    /// # Errors
    /// The error, as [`Class::Fail`].
    fn or_fail(self) -> Result<T, StepError> {
        self.classify(|_| Class::Fail)
    }
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> OrClass<T, E> for Result<T, E> {
    fn classify(self, by: impl FnOnce(&E) -> Class) -> Result<T, StepError> {
        self.map_err(|error| StepError { class: Some(by(&error)), source: error.into() })
    }
}

/// How many bytes of an error are kept: it is for people to read, and has to fit into every reply.
const LONGEST: usize = 4096;

/// An error's text, cut to what a reply has room for.
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push_str(" ..");
    }
    text
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
