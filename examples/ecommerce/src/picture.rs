//! The picture of an order's saga as it ran, from its journal: as text with a lane for each service that has a part in it, or as a Mermaid diagram.

use saga_core::{
    Status,
    definition::{Graph, StepIndex},
    machine::{Event, State},
};
use std::{fmt::Write, time::Duration};

/// Who takes part, and where the lane begins.
const LANES: [(&str, usize); 4] = [("order", 13), ("inventory", 40), ("payment", 55), ("delivery", 70)];
/// A line is no longer than this.
const WIDTH: usize = 100;

/// What was written into the journal, and when: counted from its first entry.
pub struct Entry {
    pub at: Duration,
    pub event: Event,
}

/// A line of the picture.
struct Row {
    at: Duration,
    /// What was asked for, and of whom; nothing if it concerns the order as a whole.
    asked: Option<(String, usize)>,
    /// What came of it.
    came: String,
}

pub fn text(graph: &Graph, journal: &[Entry]) -> String {
    let mut picture = String::from("     time");
    for (name, column) in LANES {
        extend_to(&mut picture, column, ' ');
        picture += name;
    }
    picture.push('\n');
    let mut tip = '╭';
    for row in rows(graph, journal) {
        picture += &line(&row, tip);
        tip = '├';
    }
    let mut end = String::new();
    extend_to(&mut end, LANES[0].1, ' ');
    let _ = writeln!(picture, "{end}╰─ {}", stands(graph, journal));
    picture
}

fn line(Row { at, asked, came }: &Row, tip: char) -> String {
    let mut line = format!("{:>7.2} s", at.as_secs_f64());
    extend_to(&mut line, LANES[0].1, ' ');
    match asked {
        None => line += &format!("┊  {came}"),
        Some((what, 0)) => line += &format!("{tip}─ {what} {came}"),
        Some((what, lane)) => {
            line += &format!("{tip}─ {what} ");
            extend_to(&mut line, LANES[*lane].1 - 1, '─');
            line += &format!("▶ {came}");
        }
    }
    if line.chars().count() > WIDTH {
        line = line.chars().take(WIDTH - 1).chain(['…']).collect();
    }
    line + "\n"
}

fn extend_to(line: &mut String, column: usize, with: char) {
    let missing = column.saturating_sub(line.chars().count());
    line.extend(std::iter::repeat_n(with, missing));
}

pub fn mermaid(graph: &Graph, journal: &[Entry]) -> String {
    let mut diagram = String::from("sequenceDiagram\n");
    for (name, _) in LANES {
        let _ = writeln!(diagram, "    participant {name}");
    }
    for Row { at, asked, came } in rows(graph, journal) {
        // These would end the line, or begin something else.
        let came = came.replace([';', '#', ':', '\n'], ",");
        let at = at.as_secs_f64();
        let _ = match asked {
            None => writeln!(diagram, "    Note over order: {came} ({at:.2} s)"),
            Some((what, 0)) => writeln!(diagram, "    order->>order: {what} {came} ({at:.2} s)"),
            Some((what, lane)) => {
                let whom = LANES[lane].0;
                writeln!(diagram, "    order->>{whom}: {what}\n    {whom}-->>order: {came} ({at:.2} s)")
            }
        };
    }
    let _ = writeln!(diagram, "    Note over order: {}", stands(graph, journal));
    diagram
}

fn rows(graph: &Graph, journal: &[Entry]) -> Vec<Row> {
    let mut rows = vec![];
    for (place, Entry { at, event }) in journal.iter().enumerate() {
        let asked = |step: StepIndex| Some((graph.node(step).name.to_string(), lane(graph, step)));
        let to_undo = |step: StepIndex| Some((format!("undo {}", graph.node(step).name), lane(graph, step)));
        let (asked, came) = match event {
            // What it says is known before it is sent.
            Event::Commanded { .. } => continue,
            Event::Awaiting { step, .. } | Event::Retrying { step, .. } | Event::CompensationRetrying { step, .. } => {
                if tells_the_same(&journal[place + 1..], *step) {
                    continue;
                }
                let undoing = matches!(event, Event::CompensationRetrying { .. });
                let asked = if undoing { to_undo(*step) } else { asked(*step) };
                (asked, format!("… not yet (asked {})", times(attempts(&journal[..=place], *step))))
            }
            Event::Succeeded { step, .. } => (asked(*step), "✓".into()),
            Event::Failed { step, in_doubt: false, error } => (asked(*step), format!("✗ {error}")),
            Event::Failed { step, in_doubt: true, error } => (asked(*step), format!("? {error}")),
            Event::Compensated { step } => (to_undo(*step), "✓".into()),
            Event::Stuck { step, error, .. } => (asked(*step), format!("✗ gave up: {error}")),
            Event::CompensationStuck { step, error } => (to_undo(*step), format!("✗ gave up: {error}")),
            Event::Skipped { step, reason } => (asked(*step), format!("skipped: {reason}")),
            Event::Lapsed { .. } => (None, "✝ the process that ran it is gone; another one takes over".into()),
            Event::Parked { .. } | Event::CancelRequested { .. } | Event::Resumed { .. } | Event::Refused { .. } => {
                (None, event.told(graph))
            }
        };
        rows.push(Row { at: *at, asked, came });
    }
    rows
}

/// Whether the next that is heard of a step is again that it has no answer.
fn tells_the_same(rest: &[Entry], step: StepIndex) -> bool {
    let next = rest.iter().find_map(|entry| match &entry.event {
        Event::Lapsed { .. } => Some(false),
        Event::Awaiting { step: of, .. }
        | Event::Retrying { step: of, .. }
        | Event::CompensationRetrying { step: of, .. } => (*of == step).then_some(true),
        Event::Succeeded { step: of, .. }
        | Event::Failed { step: of, .. }
        | Event::Compensated { step: of }
        | Event::Stuck { step: of, .. } => (*of == step).then_some(false),
        _ => None,
    });
    next == Some(true)
}

/// How often a step was asked for: each try without success, and the one under way.
fn attempts(journal: &[Entry], step: StepIndex) -> usize {
    let ended = |event: &Event| match event {
        Event::Retrying { step: of, .. } | Event::CompensationRetrying { step: of, .. } => *of == step,
        _ => false,
    };
    let tries = journal.iter().filter(|entry| ended(&entry.event)).count();
    match journal.last() {
        Some(Entry { event: Event::Awaiting { .. }, .. }) => tries + 1,
        _ => tries,
    }
}

fn times(attempts: usize) -> String {
    if attempts == 1 { "once".into() } else { format!("{attempts} times") }
}

/// Who does a step, as a lane; what no other service does, the order service does itself.
fn lane(graph: &Graph, step: StepIndex) -> usize {
    match &*graph.node(step).name {
        "reserve-stock" => 1,
        "charge-payment" => 2,
        "start-delivery" => 3,
        _ => 0,
    }
}

fn stands(graph: &Graph, journal: &[Entry]) -> &'static str {
    match State::replay(graph, journal.iter().map(|entry| &entry.event)).status() {
        Status::Completed => "CONFIRMED",
        Status::RolledBack => "CANCELLED",
        Status::Parked => "parked: a person has to look",
        Status::Running | Status::Compensating => "… under way",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::OrderSaga;
    use saga_core::{Definition, Encoded};

    const PLACE: StepIndex = 0;
    const RESERVE: StepIndex = 1;
    const CHARGE: StepIndex = 2;
    const DELIVER: StepIndex = 3;
    const CONFIRM: StepIndex = 4;

    fn graph() -> Graph {
        Definition::<OrderSaga>::build().unwrap().graph().clone()
    }

    fn journal(events: impl IntoIterator<Item = (u64, Event)>) -> Vec<Entry> {
        let entry = |(at, event)| Entry { at: Duration::from_millis(at), event };
        events.into_iter().map(entry).collect()
    }

    fn done(step: StepIndex) -> Event {
        Event::Succeeded { step, output: Encoded::null() }
    }

    fn again(step: StepIndex) -> Event {
        Event::Retrying { step, in_doubt: false, since: 0, at: 0, error: "away".into() }
    }

    fn refused(step: StepIndex, error: &str) -> Event {
        Event::Failed { step, in_doubt: false, error: error.into() }
    }

    /// With all that is left after a crash and a wait.
    fn eventful() -> Vec<Entry> {
        journal([
            (0, done(PLACE)),
            (20, Event::Commanded { step: RESERVE, body: Encoded::null() }),
            (40, done(RESERVE)),
            (1500, Event::Lapsed { total: 1, at: 1500 }),
            (1510, done(CHARGE)),
            (1700, again(DELIVER)),
            (2100, again(DELIVER)),
            (3100, Event::Awaiting { step: DELIVER, until: 0 }),
            (12_345, done(DELIVER)),
            (12_350, done(CONFIRM)),
        ])
    }

    #[test]
    fn an_order_that_had_to_wait_and_lost_its_process() {
        let expected = "
     time    order                      inventory      payment        delivery
   0.00 s    ╭─ place-order ✓
   0.04 s    ├─ reserve-stock ─────────▶ ✓
   1.50 s    ┊  ✝ the process that ran it is gone; another one takes over
   1.51 s    ├─ charge-payment ───────────────────────▶ ✓
   3.10 s    ├─ start-delivery ──────────────────────────────────────▶ … not yet (asked 3 times)
  12.35 s    ├─ start-delivery ──────────────────────────────────────▶ ✓
  12.35 s    ├─ confirm-order ✓
             ╰─ CONFIRMED
";
        assert_eq!(format!("\n{}", text(&graph(), &eventful())), expected);
    }

    #[test]
    fn an_order_that_is_rolled_back() {
        let journal = journal([
            (0, done(PLACE)),
            (20, done(RESERVE)),
            (40, refused(CHARGE, "payment declined")),
            (60, Event::Compensated { step: RESERVE }),
            (80, Event::Compensated { step: PLACE }),
        ]);
        let expected = "
     time    order                      inventory      payment        delivery
   0.00 s    ╭─ place-order ✓
   0.02 s    ├─ reserve-stock ─────────▶ ✓
   0.04 s    ├─ charge-payment ───────────────────────▶ ✗ payment declined
   0.06 s    ├─ undo reserve-stock ────▶ ✓
   0.08 s    ├─ undo place-order ✓
             ╰─ CANCELLED
";
        assert_eq!(format!("\n{}", text(&graph(), &journal)), expected);
    }

    #[test]
    fn a_line_fits_on_a_screen_whatever_was_said() {
        let journal = journal([(0, done(PLACE)), (20, refused(RESERVE, &"no ".repeat(100)))]);
        let picture = text(&graph(), &journal);
        assert!(picture.lines().all(|line| line.chars().count() <= WIDTH), "{picture}");
        assert!(picture.contains("no…\n") && picture.ends_with("╰─ … under way\n"), "{picture}");
    }

    #[test]
    fn the_same_as_a_diagram() {
        let journal = journal([(0, done(PLACE)), (1200, again(RESERVE)), (1300, refused(RESERVE, "a; b"))]);
        let expected = "sequenceDiagram
    participant order
    participant inventory
    participant payment
    participant delivery
    order->>order: place-order ✓ (0.00 s)
    order->>inventory: reserve-stock
    inventory-->>order: … not yet (asked once) (1.20 s)
    order->>inventory: reserve-stock
    inventory-->>order: ✗ a, b (1.30 s)
    Note over order: … under way
";
        assert_eq!(mermaid(&graph(), &journal), expected);
    }
}
