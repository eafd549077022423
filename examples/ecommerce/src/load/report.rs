//! What came of a load run.

use super::{Options, Seen};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

pub(super) struct Report {
    users: i64,
    lasted: Duration,
    answers: usize,
    missed: usize,
    per_second: f64,
    answered_in: Level,
    ended_in: Level,
    states: BTreeMap<String, usize>,
    unfinished: i64,
    failed: Vec<String>,
    /// How long after the last answer the last order ended; nothing if it was before.
    drained_in: Duration,
}

/// A service level.
struct Level {
    p50: Duration,
    p95: Duration,
    p99: Duration,
    longest: Duration,
}

impl Level {
    fn of(mut durations: Vec<Duration>) -> Self {
        let mut at = |share| percentile(&mut durations, share).unwrap_or_default();
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), longest: at(1.0) }
    }

    fn all(&self) -> [f64; 4] {
        [self.p50, self.p95, self.p99, self.longest].map(|duration| (duration.as_secs_f64() * 1e4).round() / 10.0)
    }

    fn json(&self) -> Value {
        let [p50, p95, p99, longest] = self.all();
        json!({ "p50": p50, "p95": p95, "p99": p99, "max": longest })
    }
}

/// A duration that so large a share of them did not exceed.
pub(super) fn percentile(durations: &mut [Duration], share: f64) -> Option<Duration> {
    let place = (durations.len() as f64 * share).ceil() as usize;
    let place = place.clamp(1, durations.len().max(1)) - 1;
    (!durations.is_empty()).then(|| *durations.select_nth_unstable(place).1)
}

impl Report {
    pub(super) fn of(options: &Options, began: Instant, seen: &Seen, unfinished: i64) -> Self {
        let ended = seen.orders.values().filter_map(|order| Some((order, order.ended.as_ref()?)));
        let last_end = ended.clone().map(|(_, (_, at))| *at).max();
        let mut states = BTreeMap::new();
        for (_, (state, _)) in ended.clone() {
            *states.entry(state.clone()).or_default() += 1;
        }
        // In whole milliseconds, the clocks may differ by a part of one.
        let took = ended.map(|(order, (_, at))| at.duration_since(order.meant).unwrap_or_default()).collect();
        let drained_in = last_end.zip(seen.last_answer).and_then(|(end, answer)| end.duration_since(answer).ok());
        // While all of them were there.
        let all_are_there = began + options.ramp..began + options.ramp + options.hold;
        let meanwhile = seen.answers.iter().filter(|answer| all_are_there.contains(&answer.at)).count();
        Self {
            users: options.users,
            lasted: options.ramp + options.hold,
            answers: seen.answers.len(),
            missed: seen.missed,
            per_second: meanwhile as f64 / options.hold.as_secs_f64().max(1.0),
            answered_in: Level::of(seen.answers.iter().map(|answer| answer.took).collect()),
            ended_in: Level::of(took),
            states,
            unfinished,
            failed: seen.failed.clone(),
            drained_in: drained_in.unwrap_or_default(),
        }
    }

    fn ended(&self) -> usize {
        self.states.values().sum()
    }

    /// Why it is not, else. `placed` is how many orders the shop knows of.
    pub(super) fn is_good(&self, placed: i64) -> Result<(), String> {
        let orders = self.answers;
        match () {
            () if orders == 0 => Err("no order was answered".into()),
            () if !self.failed.is_empty() => Err(format!("{} checks failed", self.failed.len())),
            () if self.missed > 0 => Err(format!("{} orders were not placed: the shop is too slow", self.missed)),
            () if self.unfinished > 0 => Err(format!("{} orders have not ended", self.unfinished)),
            () if self.ended() != orders => {
                Err(format!("of {orders} orders only {} are known to have ended", self.ended()))
            }
            () if usize::try_from(placed) != Ok(orders) => {
                Err(format!("{orders} orders were answered, but there are {placed}"))
            }
            () => Ok(()),
        }
    }

    pub(super) fn print(&self) {
        println!(
            "\n   {} users, {:?}: {} orders answered, {:.0} orders/s while all were there\n",
            self.users, self.lasted, self.answers, self.per_second
        );
        println!("   {:<44}{:>10}{:>10}{:>10}{:>10}", "in milliseconds", "p50", "p95", "p99", "max");
        for (what, level) in
            [("until an order is answered", &self.answered_in), ("until it has its final state", &self.ended_in)]
        {
            let [p50, p95, p99, longest] = level.all();
            println!("   {what:<44}{p50:>10.1}{p95:>10.1}{p99:>10.1}{longest:>10.1}");
        }
        println!();
        for (state, orders) in &self.states {
            println!("   {state:<44}{orders:>10}");
        }
        println!("   {:<44}{:>10}", "failed checks", self.failed.len());
        println!("   {:<44}{:>10}", "orders not placed, the shop was too slow", self.missed);
        for (why, times) in self.reasons() {
            println!("      {times} x {why}");
        }
        println!("   {:<44}{:>7} ms\n", "the last order ended, after the last answer", self.drained_in.as_millis());
    }

    /// The most frequent ones.
    fn reasons(&self) -> Vec<(&str, usize)> {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for why in &self.failed {
            *reasons.entry(why).or_default() += 1;
        }
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, times)| usize::MAX - times);
        reasons.truncate(5);
        reasons
    }

    pub(super) fn json(&self, balanced: bool) -> Value {
        json!({
            "users": self.users,
            "seconds": self.lasted.as_secs_f64(),
            "answers": self.answers,
            "missed": self.missed,
            "ordersPerSecond": (self.per_second * 10.0).round() / 10.0,
            "failedChecks": self.failed.len(),
            "reasons": self.reasons(),
            "answerMs": self.answered_in.json(),
            "finalStateMs": self.ended_in.json(),
            "states": self.states,
            "unfinished": self.unfinished,
            "drainedMs": self.drained_in.as_millis(),
            "booksBalance": balanced,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_duration_that_so_many_did_not_exceed() {
        let mut durations: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let mut at = |share| percentile(&mut durations, share).unwrap().as_millis();
        assert_eq!([at(0.0), at(0.5), at(0.95), at(0.99), at(1.0)], [1, 100, 190, 198, 200]);
        assert_eq!(percentile(&mut [Duration::ZERO], 0.5), Some(Duration::ZERO));
        assert_eq!(percentile(&mut [], 0.5), None);
    }
}
