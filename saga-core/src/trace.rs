//! One trace for one saga, by the API of [OpenTelemetry](https://opentelemetry.io), across retries, restarts and processes.
//!
//! A saga outlives the request that starts it and the process that runs it. So its trace context is kept as text beside it, as W3C's [Trace Context](https://www.w3.org/TR/trace-context/) and
//! [Baggage](https://www.w3.org/TR/baggage/) write it, and whoever does something for it goes on from there. These spans come of it, each as long as its work and no longer:
//!
//! | span | kind | child of | is |
//! |---|---|---|---|
//! | `saga start NAME` | internal | what called `submit` | the saga's anchor |
//! | `saga step STEP`, `saga compensate STEP` | internal | the anchor | one attempt |
//! | `send TOPIC` | producer | the attempt; the `process` of what is answered; an event's `create` | a command, a reply or an event on its way to the broker |
//! | `process TOPIC` | consumer | what the message carries, also linked | a handler; a reply on its way into its saga's mailbox |
//! | `create TOPIC` | producer | what called `publish` | an event that was put into an outbox |
//!
//! In a step, a compensation and a handler the span is [`Context::current`]: clients that are instrumented go on by themselves. A handler of [many events](crate::participant::Listener::on_batch) is a part
//! of no trace; each of its events [has the span](crate::participant::EventCx::context) of its own.
//!
//! Without an SDK nothing is recorded. What came in with `submit` is handed on all the same; a saga without any trace is its own: the trace id is the saga's id, and not sampled.

use crate::{SagaId, message::Message};
use opentelemetry::{
    Context, InstrumentationScope, KeyValue, StringValue,
    baggage::{Baggage, BaggageExt, BaggageMetadata},
    global::{self, BoxedTracer},
    trace::{SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer},
};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::{collections::BTreeMap, str::FromStr, sync::Arc};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

/// How long `tracestate` and `baggage` may be; what is longer is left out as a whole. As W3C has it.
const LONGEST_STATE: usize = 512;
const LONGEST_BAGGAGE: usize = 8192;

/// What a value of baggage cannot hold as it is.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b',').add(b';').add(b'\\').add(b'%').add(b'=');

/// A trace context as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// Trace, span and flags; without it there is no trace.
    pub traceparent: Option<String>,
    /// What vendors keep beside it.
    pub tracestate: Option<String>,
    /// What users keep beside it.
    pub baggage: Option<String>,
}

impl TraceContext {
    /// Of a context; empty if there is no trace in it.
    pub fn of(context: &Context) -> Self {
        let span = context.span();
        let span = span.span_context();
        let traceparent = span
            .is_valid()
            .then(|| format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()));
        let tracestate = Some(span.trace_state().header());
        let baggage = Some(written(context.baggage()));
        Self {
            traceparent,
            tracestate: tracestate.filter(|state| !state.is_empty() && state.len() <= LONGEST_STATE),
            baggage: baggage.filter(|baggage| !baggage.is_empty() && baggage.len() <= LONGEST_BAGGAGE),
        }
    }

    /// As it came with a message.
    pub fn of_headers(headers: &BTreeMap<String, String>) -> Self {
        let header = |name| headers.get(name).cloned();
        Self { traceparent: header(TRACEPARENT), tracestate: header(TRACESTATE), baggage: header(BAGGAGE) }
    }

    /// Puts it among a message's headers. A trace takes the place of the one that is there; baggage that is there stays.
    pub fn write_to(self, headers: &mut BTreeMap<String, String>) {
        if let Some(traceparent) = self.traceparent {
            headers.insert(TRACEPARENT.to_owned(), traceparent);
            headers.remove(TRACESTATE);
            headers.extend(self.tracestate.map(|tracestate| (TRACESTATE.to_owned(), tracestate)));
        }
        if let Some(baggage) = self.baggage {
            headers.entry(BAGGAGE.to_owned()).or_insert(baggage);
        }
    }

    /// As the parent of what is done now. What cannot be read is left out.
    pub fn context(&self) -> Context {
        let state = self.tracestate.as_deref().and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
        let mut context = Context::new();
        if let Some(span) = self.traceparent.as_deref().and_then(|text| parent(text, state)) {
            context = context.with_remote_span_context(span);
        }
        match &self.baggage {
            Some(baggage) => context.with_baggage(read(baggage)),
            None => context,
        }
    }

    /// The same for a saga, which has a trace in any case.
    pub(crate) fn context_of(&self, saga: SagaId) -> Context {
        let context = self.context();
        if context.span().span_context().is_valid() {
            return context;
        }
        let (trace, span) = (saga.as_uuid().into_bytes(), saga.as_uuid().as_u64_pair().1.to_be_bytes());
        let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
        let own = SpanContext::new(trace, span, TraceFlags::NOT_SAMPLED, true, TraceState::NONE);
        context.with_remote_span_context(own)
    }
}

/// `00-<trace>-<span>-<flags>`; a later version may have more behind.
fn parent(text: &str, state: TraceState) -> Option<SpanContext> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex =
        |part: &str, length| part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let known = version != "00" || parts.next().is_none();
    if version == "ff" || !known || !is_hex(version, 2) || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2)
    {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = SpanContext::new(TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags, true, state);
    context.is_valid().then_some(context)
}

fn written(baggage: &Baggage) -> String {
    let members = baggage.iter().map(|(key, (value, metadata))| {
        let value = utf8_percent_encode(value.as_str(), ENCODED);
        match metadata.as_str().trim() {
            "" => format!("{key}={value}"),
            metadata => format!("{key}={value};{metadata}"),
        }
    });
    members.collect::<Vec<_>>().join(",")
}

fn read(text: &str) -> Baggage {
    let mut baggage = Baggage::new();
    for member in text.split(',') {
        let (member, metadata) = member.split_once(';').unwrap_or((member, ""));
        let Some((key, value)) = member.split_once('=') else { continue };
        let Ok(value) = percent_decode_str(value.trim()).decode_utf8() else { continue };
        let value = StringValue::from(value.into_owned());
        baggage.insert_with_metadata(key.trim().to_owned(), value, BaggageMetadata::from(metadata.trim()));
    }
    baggage
}

/// Begins spans. It belongs to the tracer that OpenTelemetry's globals give to whoever makes it, so make one when a service starts, and keep it.
#[derive(Clone, Debug)]
pub struct Tracing {
    tracer: Arc<BoxedTracer>,
    system: Option<&'static str>,
}

/// What spans and metrics come from.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("saga").with_version(env!("CARGO_PKG_VERSION")).build()
}

impl Default for Tracing {
    fn default() -> Self {
        Self { tracer: Arc::new(global::tracer_with_scope(scope())), system: None }
    }
}

impl Tracing {
    /// The same, for messages that go over this [system](crate::transport::Transport::system).
    pub fn over(self, system: &'static str) -> Self {
        Self { system: Some(system), ..self }
    }

    /// An event comes into being, as part of what is done at present: for outboxes. Its headers say so from here on, unless they belong to a trace already.
    pub fn create(&self, topic: &str, message: &mut Message) {
        if message.headers.contains_key(TRACEPARENT) {
            return;
        }
        let context = self.message(Doing::Create, topic, message, &Context::current());
        TraceContext::of(&context).write_to(&mut message.headers);
    }

    /// A message leaves whose headers say which trace it belongs to: for relays, which forward them untouched.
    pub fn forward(&self, topic: &str, message: &Message) -> UnderWay {
        let parent = TraceContext::of_headers(&message.headers).context();
        UnderWay(self.message(Doing::Send, topic, message, &parent))
    }

    /// A message leaves, as part of `parent`. Its headers say so from here on.
    pub(crate) fn send(&self, topic: &str, message: &mut Message, parent: &Context) -> UnderWay {
        let context = self.message(Doing::Send, topic, message, parent);
        TraceContext::of(&context).write_to(&mut message.headers);
        UnderWay(context)
    }

    /// A message is dealt with.
    pub(crate) fn process(&self, topic: &str, message: &Message) -> Context {
        let parent = TraceContext::of_headers(&message.headers).context();
        let context = self.message(Doing::Process, topic, message, &parent);
        if parent.has_active_span() {
            context.span().add_link(parent.span().span_context().clone(), vec![]);
        }
        context
    }

    /// Something is done: a span that ends when the last clone of the context is dropped. Its attributes are asked for only if somebody records them.
    pub(crate) fn begin(
        &self,
        name: String,
        kind: SpanKind,
        parent: &Context,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) -> Context {
        let span = self.tracer.span_builder(name).with_kind(kind).start_with_context(&*self.tracer, parent);
        let context = parent.with_span(span);
        if context.span().is_recording() {
            context.span().set_attributes(attributes());
        }
        context
    }

    fn message(&self, doing: Doing, topic: &str, message: &Message, parent: &Context) -> Context {
        let kind = if doing == Doing::Process { SpanKind::Consumer } else { SpanKind::Producer };
        self.begin(format!("{} {topic}", doing.name()), kind, parent, || {
            let mut attributes = vec![
                KeyValue::new("messaging.operation.name", doing.name()),
                KeyValue::new("messaging.operation.type", doing.name()),
                KeyValue::new("messaging.destination.name", topic.to_owned()),
                KeyValue::new("messaging.message.id", message.id.clone()),
                KeyValue::new("messaging.message.body.size", i64::try_from(message.data.len()).unwrap_or(i64::MAX)),
                KeyValue::new("cloudevents.event_type", message.kind.clone()),
            ];
            let system = self.system.filter(|_| doing != Doing::Create);
            attributes.extend(system.map(|system| KeyValue::new("messaging.system", system)));
            if let Some(saga) = message.extensions.get("sagaid") {
                attributes.push(KeyValue::new("messaging.message.conversation_id", saga.clone()));
            }
            attributes
        })
    }
}

/// Says that what was done did not go well.
pub(crate) fn failed(context: &Context, error: &str) {
    let span = context.span();
    if span.is_recording() {
        span.set_status(Status::error(error.to_owned()));
    }
}

/// What is done with a message, by the names of OpenTelemetry's conventions for messaging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Create,
    Send,
    Process,
}

impl Doing {
    const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Send => "send",
            Self::Process => "process",
        }
    }
}

/// A message that is on its way to the broker, until this is dropped.
#[derive(Debug)]
pub struct UnderWay(Context);

impl UnderWay {
    /// It did not get there, or may not have.
    pub fn failed(&self, error: &dyn std::error::Error) {
        failed(&self.0, &error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_reads_as_it_was_written() {
        let text = TraceContext {
            traceparent: Some(PARENT.into()),
            tracestate: Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE".into()),
            baggage: Some("user=Am%C3%A9lie%2C%20the%201st;secret".into()),
        };
        let context = text.context();
        assert!(context.span().span_context().is_sampled() && context.span().span_context().is_remote());
        assert_eq!(context.baggage().get("user").unwrap().as_str(), "Amélie, the 1st");
        assert_eq!(TraceContext::of(&context), text);
    }

    #[test]
    fn what_is_no_traceparent_is_no_trace() {
        let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let capitals = "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01";
        let longer = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        let forbidden = "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for text in ["", "-", "00", zeros, capitals, longer, forbidden, &PARENT[..54], "日本-日本-日本-日本"] {
            let text = TraceContext { traceparent: Some(text.into()), ..TraceContext::default() };
            assert_eq!(TraceContext::of(&text.context()), TraceContext::default(), "{text:?}");
        }
        let later = TraceContext { traceparent: Some(format!("cc{}-more", &PARENT[2..])), ..TraceContext::default() };
        assert_eq!(TraceContext::of(&later.context()).traceparent.as_deref(), Some(PARENT));
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let key = "k".repeat(200);
        let long = Context::new().with_baggage(vec![KeyValue::new(key, "v".repeat(LONGEST_BAGGAGE))]);
        assert_eq!(TraceContext::of(&long), TraceContext::default());
    }

    #[test]
    fn a_saga_without_a_trace_is_its_own() {
        let saga = SagaId::generate();
        let context = TraceContext::default().context_of(saga);
        let traceparent = TraceContext::of(&context).traceparent.unwrap();
        assert!(traceparent.starts_with(&format!("00-{}-", saga.as_uuid().simple())), "{traceparent}");
        assert!(traceparent.ends_with("-00"), "{traceparent}");
    }
}
