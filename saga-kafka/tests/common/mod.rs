//! What tests on a real Kafka share.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
};

/// A real broker: the one in `KAFKA_BROKERS`, else one of our own. It goes when this does, or when the test is killed.
pub(crate) struct RealBroker {
    pub(crate) brokers: String,
    own: Option<(Child, Option<ChildStdin>)>,
}

impl RealBroker {
    pub(crate) fn start() -> Self {
        if let Some(brokers) = std::env::var("KAFKA_BROKERS").ok().filter(|brokers| !brokers.is_empty()) {
            return Self { brokers, own: None };
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka");
        // It ends when its stdin does.
        let mut child = Command::new("bash")
            .args([script, "run", "--", "bash", "-c", "echo $KAFKA_BROKERS; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let brokers = BufReader::new(stdout).lines().next();
        let brokers = brokers.expect("no broker: see above for what `scripts/kafka` needs").unwrap();
        Self { brokers, own: Some((child, stdin)) }
    }
}

impl Drop for RealBroker {
    fn drop(&mut self) {
        if let Some((child, stdin)) = &mut self.own {
            drop(stdin.take());
            let _ = child.wait();
        }
    }
}
