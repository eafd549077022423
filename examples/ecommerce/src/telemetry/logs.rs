//! Log lines, each with its service and the trace that it belongs to. On stderr; `RUST_LOG` says which.

use opentelemetry::{Context, trace::TraceContextExt};
use std::fmt;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Pretty,
    /// One object a line.
    Json,
}

impl Format {
    pub(super) const fn argument(self) -> &'static str {
        match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        }
    }
}

pub(super) fn start(format: Format) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,sqlx=error,librdkafka=error"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Pretty => {
            let pretty = tracing_subscriber::fmt::format().with_ansi(false);
            lines.event_format(Pretty(pretty)).init();
        }
        Format::Json => {
            let json = tracing_subscriber::fmt::format().json().flatten_event(true);
            lines.json().event_format(Json(json)).init();
        }
    }
}

/// The line, then `service`, `trace_id` and `span_id` as further fields.
struct Pretty<F>(F);

impl<S, N, F> FormatEvent<S, N> for Pretty<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        write!(to, "{} service={}", line.trim_end(), super::current().name)?;
        if let Some((trace, span)) = trace() {
            write!(to, " trace_id={trace} span_id={span}")?;
        }
        to.write_char('\n')
    }
}

/// The same, in the object.
struct Json<F>(F);

impl<S, N, F> FormatEvent<S, N> for Json<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let fields = line.trim_end().strip_suffix('}').ok_or(fmt::Error)?;
        write!(to, r#"{fields},"service":"{}""#, super::current().name)?;
        if let Some((trace, span)) = trace() {
            write!(to, r#","trace_id":"{trace}","span_id":"{span}""#)?;
        }
        to.write_str("}\n")
    }
}

/// What is going on at present.
fn trace() -> Option<(String, String)> {
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string()))
    })
}
