//! What only a real broker can show.

mod common;

use common::RealBroker;
use saga_kafka::{KafkaTransport, TopicSpec};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn topics_are_created_as_they_are_said_to_be_and_checked_against_that() {
    let broker = RealBroker::start();
    let kafka = KafkaTransport::new(&broker.brokers).unwrap();
    let name = format!("topics-{}", uuid::Uuid::new_v4().simple());
    let spec = TopicSpec::new(&name).partitions(3).retention(DAY);
    let missing = kafka.check_topics(std::slice::from_ref(&spec)).await.unwrap_err().to_string();
    assert!(missing.contains(&format!("there is no topic `{name}`: create it")), "{missing}");
    assert!(missing.contains(&format!("there is no topic `{name}.dlt`: create it")), "{missing}");
    kafka.ensure_topics(std::slice::from_ref(&spec)).await.unwrap();
    kafka.ensure_topics(std::slice::from_ref(&spec)).await.unwrap();
    kafka.check_topics(std::slice::from_ref(&spec)).await.unwrap();
    assert_eq!(kafka.retention(&name).await.unwrap(), Some(DAY));
    let faults =
        kafka.check_topics(&[spec.partitions(9).replication(3).retention(2 * DAY)]).await.unwrap_err().to_string();
    for fault in ["has 3 partitions, not 9", "is kept 1 times, not 3", "keeps its records for 86400s, not 172800s"] {
        assert!(faults.contains(&format!("topic `{name}` {fault}")), "{faults}");
    }
}
