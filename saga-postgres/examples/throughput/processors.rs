//! Processor time, from `/proc`: in microseconds, to the hundredth of a second. Not a number where there is no such thing.

use std::fs;

/// What a tick is on Linux, in microseconds.
const TICK: f64 = 10_000.0;

/// Of this process.
pub(crate) fn own() -> f64 {
    Times::of("self").map_or(f64::NAN, |times| times.own)
}

/// Of the server that this backend belongs to: of its processes that run, and of those that have ended.
pub(crate) fn server(backend: i32) -> f64 {
    let Some(postmaster) = Times::of(&backend.to_string()).map(|backend| backend.parent) else { return f64::NAN };
    let Some(above) = Times::of(&postmaster) else { return f64::NAN };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|process| Times::of(process.file_name().to_str()?));
    let running: f64 = processes.filter(|process| process.parent == postmaster).map(|process| process.own).sum();
    above.own + above.ended + running
}

struct Times {
    parent: String,
    own: f64,
    /// Of its children that have ended.
    ended: f64,
}

impl Times {
    fn of(process: &str) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name comes before, in brackets, and may have anything in it.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
        Some(Self {
            parent: (*fields.get(1)?).to_owned(),
            own: TICK * (ticks(11)? + ticks(12)?),
            ended: TICK * (ticks(13)? + ticks(14)?),
        })
    }
}
