"""A saga participant, written from docs/src/messages.md alone, to copy from: first its own work, then what is the same for all."""

import argparse
import json
import logging
import re
import secrets
import signal
import sqlite3
import time
import uuid
from datetime import datetime, timezone

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

SERVICE, TOPIC, MOST_POINTS = "loyalty", "loyalty.commands", 10_000
THIS = "WHERE saga_id = ? AND step = ? AND generation = ?"
log = logging.getLogger(SERVICE)


class Refused(Exception): ...  # a business no: nothing happened, and under this key it never will
class TryLater(Exception): ...  # nothing happened, but it may work later
class Unreadable(Exception): ...  # the record, or its payload, is not what the contract says


# --- The work: each gets the open transaction, the command and its payload. It neither commits nor publishes. ---
SCHEMA = """
CREATE TABLE IF NOT EXISTS saga_barrier (
    saga_id text NOT NULL, step text NOT NULL, generation integer NOT NULL,
    outcome text, reply text, undone boolean NOT NULL DEFAULT false, PRIMARY KEY (saga_id, step, generation)
);
CREATE TABLE IF NOT EXISTS award (
    saga_id text NOT NULL, step text NOT NULL, generation integer NOT NULL,
    customer text NOT NULL, points integer NOT NULL, PRIMARY KEY (saga_id, step, generation)
);
CREATE TABLE IF NOT EXISTS balance (customer text PRIMARY KEY, points integer NOT NULL);
"""


def read_award(value):
    payload = read_json(value)
    customer, points = (payload.get("customer"), payload.get("points")) if isinstance(payload, dict) else (None, None)
    if not isinstance(customer, str) or type(points) is not int:  # a bool is an int to isinstance
        raise Unreadable('the payload is not {"customer": text, "points": whole number}')
    return customer, points


def award(db, command, payload):
    customer, points = payload
    if points <= 0:
        raise Refused("points have to be positive")
    row = db.execute("SELECT points FROM balance WHERE customer = ?", (customer,)).fetchone()
    balance = (row[0] if row else 0) + points
    if balance > MOST_POINTS:
        raise Refused(f"no customer may have more than {MOST_POINTS} points")
    db.execute("INSERT OR REPLACE INTO balance VALUES (?, ?)", (customer, balance))
    db.execute("INSERT INTO award VALUES (?, ?, ?, ?, ?)", (*command.key, customer, points))  # for the undo
    return {"balance": balance}


def revoke(db, command, _payload):
    # What has to be undone is what this service wrote down, whatever the undo's payload says.
    customer, points = db.execute(f"SELECT customer, points FROM award {THIS}", command.key).fetchone()
    db.execute("UPDATE balance SET points = points - ? WHERE customer = ?", (points, customer))


# (op, type): (reads the payload, does the work)
WORK = {("do", "loyalty.award.v1"): (read_award, award), ("undo", "loyalty.revoke.v1"): (lambda value: None, revoke)}


# --- The contract ---

def read_json(value):
    try:
        payload = json.loads((value or b"").decode())
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()  # no NaN, no half characters
        return payload
    except (ValueError, RecursionError) as e:
        raise Unreadable(f"the payload is not JSON: {e}") from e


ANY, NUMBER, HEX = "(?s:.+)", "[0-9]{1,9}", "[0-9a-fA-F]"
UUID = f"{HEX}{{8}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{4}}-{HEX}{{12}}"
COPIED = {"ce_sagaid": UUID, "ce_sagastep": ANY, "ce_sagagen": NUMBER, "ce_sagaop": "do|undo", "ce_sagaattempt": NUMBER}
NEEDED = {"ce_specversion": "1[.]0", "ce_id": ANY, "ce_type": ANY, "ce_source": ANY, "ce_replyto": ANY, **COPIED}
TRACEPARENT = "(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?"


class Command:
    def __init__(self, message):
        self.headers = {}
        for name, value in message.headers() or []:
            # What is not UTF-8 matches nothing below; in a header that nobody needs it must not be a hindrance.
            self.headers[name] = (value or b"").decode(errors="surrogateescape")
        bad = [name for name, pattern in NEEDED.items() if not self.readable(name, pattern)]
        if bad:
            raise Unreadable(f"header missing or not readable: {', '.join(bad)}")
        self.type, self.op, self.value = self.headers["ce_type"], self.headers["ce_sagaop"], message.value()
        self.key = (self.headers["ce_sagaid"].lower(), self.headers["ce_sagastep"], int(self.headers["ce_sagagen"]))

    def readable(self, name, pattern=ANY):
        text = self.headers.get(name, "")
        return re.fullmatch(pattern, text) if not re.search("[\ud800-\udfff]", text) else None

    def reply_headers(self, outcome):
        own = {"ce_id": str(uuid.uuid4()), "ce_type": self.type + ".reply", "ce_source": SERVICE, "ce_time": now()}
        always = {"ce_specversion": "1.0", "content-type": "application/json"}
        copied = {name: self.headers[name] for name in COPIED}
        return {**always, **own, "ce_subject": copied["ce_sagaid"], **copied, "ce_sagaoutcome": outcome, **self.trace()}

    def trace(self):
        """The same trace, with a span of our own. A traceparent that cannot be read is dropped, its tracestate too."""
        parent = self.readable("traceparent", TRACEPARENT)
        own = {"traceparent": f"00-{parent[1]}-{secrets.token_hex(8)}-{parent[2]}"} if parent else {}
        handed_on = ("tracestate", "baggage") if parent else ("baggage",)
        return own | {name: self.headers[name] for name in handed_on if self.readable(name)}


def now():
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error(text):
    return json.dumps({"error": str(text)[:1000]})


def barrier(db, command, work, payload):
    """Steps 1 to 3: what to answer, as (outcome, payload). In the caller's transaction."""
    db.execute("INSERT INTO saga_barrier (saga_id, step, generation) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", command.key)
    # SQLite has no FOR UPDATE and needs none: BEGIN IMMEDIATE has taken the only write lock of the whole database, so that
    # nobody else writes until the commit. With a server's database it has to be there.
    outcome, reply, undone = db.execute(f"SELECT outcome, reply, undone FROM saga_barrier {THIS}", command.key).fetchone()
    if command.op == "undo":
        if outcome == "success" and not undone:
            work(db, command, payload)
        db.execute(f"UPDATE saga_barrier SET undone = true {THIS}", command.key)  # with nothing done: a tombstone
        return "success", "null"
    if outcome:
        return outcome, reply
    if undone:
        return "fail", error("the undo came first")
    db.execute("SAVEPOINT work")
    try:
        outcome, reply = "success", json.dumps(work(db, command, payload), allow_nan=False)  # JSON has no NaN
    except Refused as no:
        db.execute("ROLLBACK TO work")  # what the work wrote goes, the row stays
        outcome, reply = "fail", error(no)
    db.execute(f"UPDATE saga_barrier SET outcome = ?, reply = ? {THIS}", (outcome, reply, *command.key))
    return outcome, reply


# Locked, gone or full: nothing that the command is to blame for.
DOWN = [getattr(sqlite3, "SQLITE_" + name) for name in ("BUSY", "LOCKED", "CANTOPEN", "IOERR", "FULL", "READONLY")]
# What is said to a reply each time: no such topic, no topic's name, not allowed, too large. Waiting would stop the partition.
NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.TOPIC_EXCEPTION, KafkaError._INVALID_ARG)
REFUSED_FOR_GOOD = (*NO_TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.MSG_SIZE_TOO_LARGE)

# Seconds that a reply topic which cannot be written to, while the broker works, may hold up the commands of others.
PATIENCE = 60


def refuse(_db, _command, problem):
    raise Refused(problem)


class Participant:
    def __init__(self, database, producer):
        self.database, self.producer, self.db = database, producer, None
        self.away = {}  # reply topics that cannot be written to, and since when

    def handle(self, message):
        """Everything up to the offset. An exception means: not now, the same record again."""
        try:
            command = Command(message)
        except Unreadable as problem:
            return self.bury(message, problem)
        outcome, reply, problem = self.answer(command)
        if problem:
            self.bury(message, problem)
        log.info("%s %s: %s", command.op, command.headers["ce_id"], outcome)
        topic = command.headers["ce_replyto"]
        try:
            self.publish(topic, command.headers["ce_sagaid"], reply, command.reply_headers(outcome))
            self.away.pop(topic, None)
        except KafkaException as e:
            if e.args[0].code() not in REFUSED_FOR_GOOD and not self.gives_up(topic, message.topic() + ".dlt"):
                raise
            self.bury(message, f"the reply cannot be published: {e.args[0].str()}")

    def gives_up(self, topic, dead_letters):
        """Whether a reply topic has been away for so long that others must not wait for it any more."""
        if time.monotonic() - self.away.setdefault(topic, time.monotonic()) < PATIENCE:
            return False
        try:
            known = self.producer.list_topics(dead_letters, timeout=5).topics[dead_letters].partitions.values()
        except KafkaException:
            known = []
        if known and all(partition.leader >= 0 for partition in known):
            return True
        del self.away[topic]  # it is the broker that is away: everything waits, and the topic has its time anew
        return False

    def answer(self, command):
        """(outcome, payload, why the command is a dead letter besides or None)"""
        problem = None
        try:
            if (command.op, command.type) not in WORK:
                raise Unreadable("unknown type, or not for this")
            read, work = WORK[command.op, command.type]
            payload = read(command.value)
        except Unreadable as e:
            problem = f"{command.op} {command.type}: {e}"
            if command.op == "undo":
                return "fail", error(problem), problem
            work, payload = refuse, problem  # in the barrier: it must not take effect later
        try:
            return *self.transaction(lambda db: barrier(db, command, work, payload)), problem
        except TryLater as e:
            return "retry", error(e), problem
        except Exception as e:
            if getattr(e, "sqlite_errorcode", 0) & 0xFF in DOWN:
                raise
            log.exception("%s %s", command.op, command.headers["ce_id"])
            return "unknown", error("internal error"), problem

    def transaction(self, act):
        if self.db is None:
            db = sqlite3.connect(self.database, timeout=1, isolation_level=None)  # None: transactions are ours to begin
            db.executescript(SCHEMA)
            self.db = db
        self.db.execute("BEGIN IMMEDIATE")
        try:
            result = act(self.db)
            self.db.execute("COMMIT")
            return result
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def bury(self, message, reason):
        log.warning("dead letter: %s [%s] at %s: %s", message.topic(), message.partition(), message.offset(), reason)
        where = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset(), "time": now()}
        own = [(f"saga-dead-letter-{name}", str(fact)[:1000]) for name, fact in {"reason": reason, **where}.items()]
        headers = [(name, value) for name, value in message.headers() or [] if not name.startswith("saga-dead-letter-")]
        key, value, short = message.key(), message.value(), message.value() and message.value()[:10_000]
        for key, value, kept in ((key, value, headers), (key, short, headers), (key, short, []), (None, short, [])):
            try:
                return self.publish(message.topic() + ".dlt", key, value, kept + own)
            except KafkaException as e:
                if e.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:  # then cut, as it must be
                    raise
        raise RuntimeError("the broker takes no dead letter of any size")

    def publish(self, topic, key, value, headers):
        """Returns when the broker has acknowledged it."""
        result = []
        self.producer.produce(topic, key=key, value=value, headers=headers, on_delivery=lambda e, _: result.append(e))
        self.producer.flush(15)
        problem = result[0] if result else KafkaError(KafkaError._TIMED_OUT, "no acknowledgement")
        if problem:
            raise KafkaException(problem)


def take(consumer, participant, message):
    try:
        participant.handle(message)
    except (sqlite3.Error, KafkaException) as e:
        # Waits without standing still: the same record comes again from the next polls, its offset uncommitted.
        log.warning("waiting, at offset %s: %s", message.offset(), e)
        if isinstance(e, KafkaException) and e.args[0].fatal():
            raise
        consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
        return time.sleep(0.2)
    try:
        consumer.commit(message, asynchronous=False)
    except KafkaException as e:  # the partition may be another node's now: there the record comes again, harmlessly
        log.warning("offset %s not committed: %s", message.offset(), e)


def run(consumer, participant, stopping):
    announcements = ["ready"]

    def on_assign(_consumer, partitions):
        if partitions and announcements:
            print(announcements.pop(), flush=True)

    consumer.subscribe([TOPIC], on_assign=on_assign)
    try:
        while not stopping():
            message = consumer.poll(0.5)
            if message is not None and message.error():
                log.warning("consumer: %s", message.error().str())
                if message.error().fatal():
                    raise KafkaException(message.error())
            elif message is not None:
                take(consumer, participant, message)
    finally:
        consumer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--brokers", "--database"):
        parser.add_argument(name, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))  # the record in hand is finished first
    brokers = {"bootstrap.servers": arguments.brokers}
    consumer = Consumer(brokers | {"group.id": SERVICE, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    # The shorter wait finds out that a reply topic does not exist, the longer one that the broker is away.
    waits = {"topic.metadata.propagation.max.ms": 3_000, "delivery.timeout.ms": 10_000}
    producer = Producer(brokers | {"acks": "all", "enable.idempotence": True} | waits)
    run(consumer, Participant(arguments.database, producer), lambda: stop)


if __name__ == "__main__":
    main()
