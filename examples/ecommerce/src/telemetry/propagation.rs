//! How a trace goes from one service to the next over HTTP: in W3C's headers, or in Zipkin's B3 headers. There is no kept crate for the latter.
//!
//! Both are understood, whichever is sent; if both come, W3C's count. See <https://github.com/openzipkin/b3-propagation>.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator, text_map_propagator::FieldIter},
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};

const SINGLE: &str = "b3";
const TRACE: &str = "x-b3-traceid";
const SPAN: &str = "x-b3-spanid";
const SAMPLED: &str = "x-b3-sampled";
const FLAGS: &str = "x-b3-flags";

/// Whatever says which trace it is.
pub(super) const HEADERS: [&str; 8] =
    ["traceparent", "tracestate", SINGLE, TRACE, SPAN, "x-b3-parentspanid", SAMPLED, FLAGS];

/// What is sent. Baggage is in any case.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(super) enum Headers {
    /// `traceparent` and `tracestate`.
    #[default]
    W3c,
    /// `b3`.
    B3,
    /// `x-b3-traceid` and its like.
    B3multi,
}

impl Headers {
    pub(super) const fn argument(self) -> &'static str {
        match self {
            Self::W3c => "w3c",
            Self::B3 => "b3",
            Self::B3multi => "b3multi",
        }
    }
}

#[derive(Debug)]
pub(super) struct Propagation {
    sent: Headers,
    w3c: TraceContextPropagator,
    baggage: BaggagePropagator,
    fields: Vec<String>,
}

impl Propagation {
    pub(super) fn by(sent: Headers) -> Self {
        let w3c = TraceContextPropagator::new();
        let mut fields: Vec<String> = match sent {
            Headers::W3c => w3c.fields().map(Into::into).collect(),
            Headers::B3 => vec![SINGLE.into()],
            Headers::B3multi => [TRACE, SPAN, SAMPLED].map(Into::into).into(),
        };
        let baggage = BaggagePropagator::new();
        fields.extend(baggage.fields().map(Into::<String>::into));
        Self { sent, w3c, baggage, fields }
    }
}

impl TextMapPropagator for Propagation {
    fn inject_context(&self, context: &Context, headers: &mut dyn Injector) {
        let span = context.span();
        let span = span.span_context();
        let (trace, id, sampled) = (span.trace_id(), span.span_id(), u8::from(span.is_sampled()));
        match self.sent {
            Headers::W3c => self.w3c.inject_context(context, headers),
            _ if !span.is_valid() => {}
            Headers::B3 => headers.set(SINGLE, format!("{trace}-{id}-{sampled}")),
            Headers::B3multi => {
                headers.set(TRACE, trace.to_string());
                headers.set(SPAN, id.to_string());
                headers.set(SAMPLED, sampled.to_string());
            }
        }
        self.baggage.inject_context(context, headers);
    }

    fn extract_with_context(&self, context: &Context, headers: &dyn Extractor) -> Context {
        let context = match single(headers).or_else(|| multiple(headers)) {
            Some(parent) => context.with_remote_span_context(parent),
            None => context.clone(),
        };
        let context = self.w3c.extract_with_context(&context, headers);
        self.baggage.extract_with_context(&context, headers)
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&self.fields)
    }
}

/// `<trace>-<span>`, then perhaps `-<sampled>`, then perhaps `-<parent>`, which we do not need.
fn single(headers: &dyn Extractor) -> Option<SpanContext> {
    let parts: Vec<&str> = headers.get(SINGLE)?.trim().split('-').collect();
    match parts[..] {
        [trace, span] => parent(trace, span, None),
        [trace, span, sampled] | [trace, span, sampled, _] => parent(trace, span, Some(sampled)),
        _ => None,
    }
}

fn multiple(headers: &dyn Extractor) -> Option<SpanContext> {
    let sampled = if headers.get(FLAGS) == Some("1") { Some("d") } else { headers.get(SAMPLED) };
    parent(headers.get(TRACE)?, headers.get(SPAN)?, sampled)
}

/// Who does not say whether the trace is sampled leaves it to us, and we say yes.
fn parent(trace: &str, span: &str, sampled: Option<&str>) -> Option<SpanContext> {
    let flags = match sampled {
        None | Some("1" | "d" | "true") => TraceFlags::SAMPLED,
        Some("0" | "false") => TraceFlags::default(),
        Some(_) => return None,
    };
    let is_id =
        |text: &str, lengths: &[usize]| lengths.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_id(trace, &[16, 32]) || !is_id(span, &[16]) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let parent = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    parent.is_valid().then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::{KeyValue, baggage::BaggageExt};
    use std::collections::HashMap;

    const LONG: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const ID: &str = "e457b5a2e4d86bd1";

    fn headers(each: &[(&str, &str)]) -> HashMap<String, String> {
        each.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Trace, span, and whether it is sampled.
    fn read(each: &[(&str, &str)]) -> Option<(String, String, bool)> {
        let context = Propagation::by(Headers::W3c).extract_with_context(&Context::new(), &headers(each));
        let span = context.span().span_context().clone();
        assert_eq!(span.is_remote(), span.is_valid());
        span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string(), span.is_sampled()))
    }

    fn sent(by: Headers, context: &Context) -> HashMap<String, String> {
        let mut headers = HashMap::new();
        Propagation::by(by).inject_context(context, &mut headers);
        headers
    }

    fn known(sampled: bool) -> Option<(String, String, bool)> {
        Some((LONG.into(), ID.into(), sampled))
    }

    #[test]
    fn b3_is_read_from_one_header() {
        for (sampling, sampled) in
            [("", true), ("-1", true), ("-d", true), ("-0", false), ("-1-05e3ac9a4f6e3b90", true)]
        {
            assert_eq!(read(&[("b3", &format!("{LONG}-{ID}{sampling}"))]), known(sampled), "{sampling}");
        }
        let short = read(&[("b3", &format!("64fe8b2a57d3eff7-{ID}-1"))]);
        assert_eq!(short, Some(("000000000000000064fe8b2a57d3eff7".into(), ID.into(), true)));
    }

    #[test]
    fn b3_is_read_from_many_headers() {
        let ids = [("x-b3-traceid", LONG), ("x-b3-spanid", ID)];
        assert_eq!(read(&ids), known(true));
        for (name, value, sampled) in
            [("x-b3-sampled", "1", true), ("x-b3-sampled", "0", false), ("x-b3-flags", "1", true)]
        {
            assert_eq!(read(&[ids[0], ids[1], (name, value)]), known(sampled), "{name}: {value}");
        }
        assert_eq!(read(&ids[..1]), None);
    }

    #[test]
    fn what_is_no_b3_is_no_trace() {
        let zeros = "0".repeat(32);
        for text in ["", "0", "-", LONG, "x-y-1", &format!("{zeros}-{ID}-1"), &format!("{LONG}-{ID}-2"), "日本-日本-1"]
        {
            assert_eq!(read(&[("b3", text)]), None, "{text}");
        }
        assert_eq!(read(&[("b3", &format!("{LONG}-{}-1", &zeros[..16]))]), None);
        assert_eq!(read(&[("b3", &format!("+{}-{ID}-1", &LONG[1..]))]), None);
    }

    #[test]
    fn w3c_counts_if_both_come() {
        let traceparent = format!("00-{LONG}-{ID}-01");
        let other = "463ac35c9f6413ad48485a3953bb6124-0020000000000001-0";
        assert_eq!(read(&[("traceparent", &traceparent), ("b3", other)]), known(true));
        assert_eq!(read(&[("traceparent", "nonsense"), ("b3", &format!("{LONG}-{ID}-0"))]), known(false));
    }

    #[test]
    fn one_of_them_is_sent_and_baggage_in_any_case() {
        let traceparent = format!("00-{LONG}-{ID}-01");
        let came = headers(&[("traceparent", &traceparent), ("tracestate", "a=b"), ("baggage", "tenant=7")]);
        let context = Propagation::by(Headers::B3).extract_with_context(&Context::new(), &came);
        assert_eq!(sent(Headers::W3c, &context), came);
        let single = headers(&[("b3", &format!("{LONG}-{ID}-1")), ("baggage", "tenant=7")]);
        assert_eq!(sent(Headers::B3, &context), single);
        let multiple = [("x-b3-traceid", LONG), ("x-b3-spanid", ID), ("x-b3-sampled", "1"), ("baggage", "tenant=7")];
        assert_eq!(sent(Headers::B3multi, &context), headers(&multiple));
    }

    #[test]
    fn without_a_trace_none_is_sent() {
        let context = Context::new().with_baggage([KeyValue::new("tenant", "7")]);
        for by in [Headers::W3c, Headers::B3, Headers::B3multi] {
            assert_eq!(sent(by, &context), headers(&[("baggage", "tenant=7")]), "{by:?}");
        }
    }
}
