//! Telemetry: one trace for each order, its id on every log line, and figures for Prometheus.
//!
//! Each service has a tracer provider and a meter provider of its own, because `service.name` belongs to those. Whoever asks OpenTelemetry's globals for a tracer or a meter gets one of the
//! service in whose task it asks; a task that belongs to no service gets the process's. So ask when a service starts, and keep it.

mod client;
mod logs;
mod propagation;
mod server;
mod zipkin;

pub use client::Client;
pub use server::{DURATIONS, Figures, watched};

use crate::Result;
use opentelemetry::{
    InstrumentationScope, global,
    metrics::{Meter, MeterProvider},
    trace::TracerProvider,
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    metrics::SdkMeterProvider,
    trace::{self, BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider},
};
use prometheus::Registry;
use propagation::Propagation;
use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};
use zipkin::Zipkin;

/// How long a process waits at its end for a collector that does not answer.
const FLUSHING: Duration = Duration::from_secs(2);
/// How long a finished span waits for others, unless `OTEL_BSP_SCHEDULE_DELAY` says so: what a process that is killed does not get rid of.
const GATHERING: Duration = Duration::from_millis(500);
/// A few seconds of load: what comes beyond while the collector is slow is dropped.
const SPANS_WAITING: usize = 65_536;
const SPANS_AT_ONCE: usize = 2_048;

/// How a process tells what it does.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Where spans go, by OTLP over HTTP: a collector or Jaeger, as http://127.0.0.1:4318. With neither of these they go nowhere.
    #[arg(long, global = true, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,
    /// A Zipkin that they go to, as http://127.0.0.1:9411.
    #[arg(long, global = true, value_name = "URL", env = "ZIPKIN_URL")]
    zipkin: Option<String>,
    /// How the services tell each other over HTTP which trace it is. Each is understood in any case.
    #[arg(long, global = true, value_enum, default_value_t, env = "PROPAGATION")]
    propagation: propagation::Headers,
    /// What log lines look like.
    #[arg(long, global = true, value_enum, default_value_t, env = "LOG_FORMAT")]
    log: logs::Format,
}

impl Options {
    /// Begins, once in a process. `name` is the service's, if the process is one.
    pub fn start(self, name: &'static str) -> Result<()> {
        let own = Service::new(name, &self)?;
        let process = Process { own: Arc::new(own), others: Mutex::default(), options: self };
        let headers = process.options.propagation;
        let log = process.options.log;
        PROCESS.set(process).map_err(|_| "telemetry was started before")?;
        global::set_text_map_propagator(Propagation::by(headers));
        global::set_tracer_provider(ByService);
        global::set_meter_provider(ByService);
        logs::start(log);
        Ok(())
    }
}

/// What a process that we start is told.
pub fn arguments() -> Vec<String> {
    let Options { otlp, zipkin, propagation, log } = &process().options;
    let mut arguments = vec![format!("--propagation={}", propagation.argument()), format!("--log={}", log.argument())];
    arguments.extend(otlp.as_ref().map(|url| format!("--otlp={url}")));
    arguments.extend(zipkin.as_ref().map(|url| format!("--zipkin={url}")));
    arguments
}

/// Does what a service does in a process that it shares with others.
pub async fn of<T>(name: &'static str, service: impl Future<Output = Result<T>>) -> Result<T> {
    let known = process().service(name)?;
    SERVICE.scope(known, service).await
}

/// Sends what is still here. Takes no longer than [`FLUSHING`], whatever became of the collector.
pub fn stop() {
    let until = Instant::now() + FLUSHING;
    let (ended, each) = mpsc::channel();
    for service in process().all() {
        let ended = ended.clone();
        thread::spawn(move || {
            let _ = service.tracers.shutdown_with_timeout(FLUSHING);
            ended.send(())
        });
    }
    drop(ended);
    // Until all have ended, or it takes too long.
    while each.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
}

static PROCESS: OnceLock<Process> = OnceLock::new();

tokio::task_local! {
    static SERVICE: Arc<Service>;
}

struct Process {
    options: Options,
    own: Arc<Service>,
    others: Mutex<Vec<Arc<Service>>>,
}

/// Tests do not start it: then nothing is told to anybody.
fn process() -> &'static Process {
    PROCESS.get_or_init(|| Process {
        options: Options::default(),
        own: Arc::new(Service::silent("ecommerce")),
        others: Mutex::default(),
    })
}

impl Process {
    fn service(&self, name: &'static str) -> Result<Arc<Service>> {
        if self.own.name == name {
            return Ok(self.own.clone());
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = others.iter().find(|other| other.name == name) {
            return Ok(known.clone());
        }
        let new = Arc::new(Service::new(name, &self.options)?);
        others.push(new.clone());
        Ok(new)
    }

    fn all(&self) -> Vec<Arc<Service>> {
        let mut all = self.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.push(self.own.clone());
        all
    }
}

/// Whose task this is.
fn current() -> Arc<Service> {
    SERVICE.try_with(Arc::clone).unwrap_or_else(|_| process().own.clone())
}

struct Service {
    name: &'static str,
    tracers: SdkTracerProvider,
    meters: SdkMeterProvider,
    figures: Registry,
}

impl Service {
    fn new(name: &'static str, Options { otlp, zipkin, .. }: &Options) -> Result<Self> {
        let resource = Resource::builder().with_service_name(name).build();
        let mut tracers = SdkTracerProvider::builder().with_resource(resource.clone());
        if let Some(url) = otlp {
            tracers = tracers.with_span_processor(batches(by_otlp(url)?));
        }
        if let Some(url) = zipkin {
            tracers = tracers.with_span_processor(batches(Zipkin::at(url, name)?));
        }
        if otlp.is_none() && zipkin.is_none() {
            // A trace goes on, and has an id for the log.
            tracers = tracers.with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)));
        }
        let tracers = tracers.build();
        let figures = Registry::new();
        let reader =
            opentelemetry_prometheus::exporter().with_registry(figures.clone()).scope_info_enabled(false).build()?;
        let meters = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
        Ok(Self { name, tracers, meters, figures })
    }

    fn silent(name: &'static str) -> Self {
        let (tracers, meters) = (SdkTracerProvider::builder().build(), SdkMeterProvider::builder().build());
        Self { name, tracers, meters, figures: Registry::new() }
    }
}

fn by_otlp(url: &str) -> Result<SpanExporter> {
    let traces = format!("{}/v1/traces", url.trim_end_matches('/'));
    let exporter =
        SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_endpoint(traces).build();
    Ok(exporter.map_err(|error| format!("spans cannot be sent to {url} (--otlp): {error}"))?)
}

/// On a thread of its own.
fn batches(exporter: impl trace::SpanExporter + 'static) -> BatchSpanProcessor {
    let batches =
        BatchConfigBuilder::default().with_max_queue_size(SPANS_WAITING).with_max_export_batch_size(SPANS_AT_ONCE);
    let batches = match std::env::var_os("OTEL_BSP_SCHEDULE_DELAY") {
        Some(_) => batches,
        None => batches.with_scheduled_delay(GATHERING),
    };
    BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build()
}

/// The providers of the service in whose task they are asked.
struct ByService;

impl TracerProvider for ByService {
    type Tracer = SdkTracer;

    fn tracer_with_scope(&self, scope: InstrumentationScope) -> SdkTracer {
        current().tracers.tracer_with_scope(scope)
    }
}

impl MeterProvider for ByService {
    fn meter_with_scope(&self, scope: InstrumentationScope) -> Meter {
        current().meters.meter_with_scope(scope)
    }
}
