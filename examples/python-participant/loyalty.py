"""A saga participant: the loyalty points of a shop. Written from docs/src/messages.md alone; meant to be copied from.

The upper half is the service's own work, the lower half is the contract and stays the same for every service.
"""

import argparse
import json
import logging
import re
import secrets
import signal
import sqlite3
import time
import uuid
from contextlib import contextmanager
from datetime import datetime, timezone

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

log = logging.getLogger("loyalty")

SERVICE = "loyalty"
TOPIC = "loyalty.commands"
MOST_POINTS = 10_000


class Refused(Exception):
    """A business no: nothing happened, and under this key it never will."""


class TryLater(Exception):
    """Nothing happened, but it may work later."""


class Unreadable(Exception):
    """The record, or its payload, is not what the contract says."""


# --- The work: each gets the open transaction, the command and its payload. It neither commits nor publishes. ---

SCHEMA = """
CREATE TABLE IF NOT EXISTS saga_barrier (
    saga_id    text    NOT NULL,
    step       text    NOT NULL,
    generation integer NOT NULL,
    outcome    text,
    reply      text,
    undone     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (saga_id, step, generation)
);
CREATE TABLE IF NOT EXISTS balance (customer text PRIMARY KEY, points integer NOT NULL);
CREATE TABLE IF NOT EXISTS award (
    saga_id text NOT NULL, step text NOT NULL, generation integer NOT NULL,
    customer text NOT NULL, points integer NOT NULL,
    PRIMARY KEY (saga_id, step, generation)
);
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
    db.execute("INSERT INTO balance VALUES (?, ?) ON CONFLICT (customer) DO UPDATE SET points = excluded.points", (customer, balance))
    db.execute("INSERT INTO award VALUES (?, ?, ?, ?, ?)", (*command.key, customer, points))  # for the undo
    return {"balance": balance}


def revoke(db, command, _payload):
    # What has to be undone is what this service wrote down, whatever the undo's payload says.
    customer, points = db.execute("SELECT customer, points FROM award WHERE saga_id = ? AND step = ? AND generation = ?", command.key).fetchone()
    db.execute("UPDATE balance SET points = points - ? WHERE customer = ?", (points, customer))


# type: (op, reads the payload, does the work)
WORK = {
    "loyalty.award.v1": ("do", read_award, award),
    "loyalty.revoke.v1": ("undo", lambda value: None, revoke),
}


# --- The contract ---


def read_json(value):
    try:
        payload = json.loads((value or b"").decode())
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()  # no NaN, no half characters
        return payload
    except (ValueError, RecursionError) as e:
        raise Unreadable(f"the payload is not JSON: {e}") from e


class Command:
    COPIED = ("ce_sagaid", "ce_sagastep", "ce_sagagen", "ce_sagaop", "ce_sagaattempt")
    NEEDED = ("ce_specversion", "ce_id", "ce_type", "ce_source", "ce_replyto", *COPIED)

    def __init__(self, message):
        self.headers = {}
        for name, value in message.headers() or []:
            try:
                self.headers[name] = (value or b"").decode()
            except UnicodeDecodeError:  # counts as not there: a header that nobody here needs must not be a hindrance
                self.headers.pop(name, None)
        missing = [name for name in self.NEEDED if not self.headers.get(name)]
        if missing:
            raise Unreadable(f"header missing or not text: {', '.join(missing)}")
        if self.headers["ce_specversion"] != "1.0":
            raise Unreadable("ce_specversion is not 1.0")
        self.type, self.op, self.value = self.headers["ce_type"], self.headers["ce_sagaop"], message.value()
        if self.op not in ("do", "undo"):
            raise Unreadable("ce_sagaop is neither do nor undo")
        for name in ("ce_sagagen", "ce_sagaattempt"):
            if not re.fullmatch("[0-9]{1,9}", self.headers[name]):
                raise Unreadable(f"{name} is not a whole number")
        try:
            saga_id = str(uuid.UUID(self.headers["ce_sagaid"]))
        except ValueError as e:
            raise Unreadable("ce_sagaid is not a UUID") from e
        self.key = (saga_id, self.headers["ce_sagastep"], int(self.headers["ce_sagagen"]))

    def reply_headers(self, outcome):
        return {
            "ce_specversion": "1.0",
            "ce_id": str(uuid.uuid4()),
            "ce_type": self.type + ".reply",
            "ce_source": SERVICE,
            "ce_subject": self.headers["ce_sagaid"],
            "ce_time": now(),
            "content-type": "application/json",
            "ce_sagaoutcome": outcome,
            **{name: self.headers[name] for name in self.COPIED},
            **self.trace(),
        }

    def trace(self):
        """The same trace, with a span of our own. A traceparent that cannot be read is dropped, its tracestate too."""
        trace = {"baggage": self.headers["baggage"]} if self.headers.get("baggage") else {}
        parent = re.fullmatch("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", self.headers.get("traceparent", ""))
        if parent and int(parent[1], 16) and int(parent[2], 16):
            trace["traceparent"] = f"00-{parent[1]}-{secrets.token_hex(8)}-{parent[3]}"
            if self.headers.get("tracestate"):
                trace["tracestate"] = self.headers["tracestate"]
        return trace


def now():
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error(text):
    return json.dumps({"error": str(text)})


def barrier(db, command, work):
    """Steps 1 to 3: what to answer, as (outcome, payload). Runs in the caller's transaction."""
    this_row = "WHERE saga_id = ? AND step = ? AND generation = ?"
    db.execute("INSERT INTO saga_barrier (saga_id, step, generation) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", command.key)
    # No FOR UPDATE, and SQLite has none: BEGIN IMMEDIATE has taken the only write lock of the whole database, so nobody else
    # is between this line and the commit. On a server's database both statements are needed as the contract says.
    outcome, reply, undone = db.execute(f"SELECT outcome, reply, undone FROM saga_barrier {this_row}", command.key).fetchone()
    if command.op == "undo":
        if outcome == "success" and not undone:
            work(db)
        db.execute(f"UPDATE saga_barrier SET undone = true {this_row}", command.key)  # with nothing done: a tombstone
        return "success", "null"
    if outcome:
        return outcome, reply
    if undone:
        return "fail", error("the undo came first")
    db.execute("SAVEPOINT work")
    try:
        outcome, reply = "success", json.dumps(work(db))
    except Refused as no:
        db.execute("ROLLBACK TO work")  # what the work wrote goes, the row stays
        outcome, reply = "fail", error(no)
    db.execute(f"UPDATE saga_barrier SET outcome = ?, reply = ? {this_row}", (outcome, reply, *command.key))
    return outcome, reply


class DatabaseDown(Exception):
    """Locked, gone or full: nothing that the command is to blame for."""

    CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY)


# What a reply's topic answers each time: waiting for it would stop the partition.
REFUSED_FOR_GOOD = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.TOPIC_EXCEPTION,  # a name that no topic can have
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.MSG_SIZE_TOO_LARGE,
)


class Participant:
    def __init__(self, database, producer):
        self.database, self.producer, self.db = database, producer, None

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
        try:
            self.publish(command.headers["ce_replyto"], command.headers["ce_sagaid"], reply, command.reply_headers(outcome))
        except KafkaException as e:
            if e.args[0].code() not in REFUSED_FOR_GOOD:
                raise
            self.bury(message, f"the reply cannot be published: {e.args[0].str()}")

    def answer(self, command):
        """(outcome, payload, why the command is a dead letter besides or None)"""
        problem = None
        try:
            op, read, work = WORK.get(command.type, (None, None, None))
            if op != command.op:
                raise Unreadable(f"no {command.op} has the type {command.type}" if op else f"unknown type {command.type}")
            payload = read(command.value)
            step = lambda db: work(db, command, payload)
        except Unreadable as e:
            problem = e
            if command.op == "undo":
                return "fail", error(problem), problem
            step = refuse(problem)
        try:
            with self.transaction() as db:
                return *barrier(db, command, step), problem
        except TryLater as e:
            return "retry", error(e), problem
        except Exception as e:
            if isinstance(e, sqlite3.Error) and getattr(e, "sqlite_errorcode", 0) & 0xFF in DatabaseDown.CODES:
                raise DatabaseDown(str(e)) from e
            log.exception("%s %s", command.op, command.headers["ce_id"])
            return "unknown", error("internal error"), problem

    @contextmanager
    def transaction(self):
        if self.db is None:
            db = sqlite3.connect(self.database, timeout=1, isolation_level=None)  # None: transactions are ours to begin
            db.executescript(SCHEMA)
            self.db = db
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
            self.db.execute("COMMIT")
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def bury(self, message, reason):
        log.warning("dead letter: %s [%s] at %s: %s", message.topic(), message.partition(), message.offset(), reason)
        where = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
        own = {f"saga-dead-letter-{name}": str(value) for name, value in {"reason": reason, **where, "time": now()}.items()}
        headers = [(name, value) for name, value in message.headers() or [] if name not in own]
        short = message.value() and message.value()[:10_000]
        for value, kept in ((message.value(), headers), (short, headers), (short, [])):  # cut, if it must be
            try:
                return self.publish(message.topic() + ".dlt", message.key(), value, kept + list(own.items()))
            except KafkaException as e:
                if e.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
        raise RuntimeError("the broker takes no dead letter of any size")

    def publish(self, topic, key, value, headers):
        """Returns when the broker has acknowledged it."""
        result = []
        self.producer.produce(topic, key=key, value=value, headers=headers, on_delivery=lambda problem, _: result.append(problem))
        self.producer.flush(15)
        problem = result[0] if result else KafkaError(KafkaError._TIMED_OUT, "no acknowledgement")
        if problem:
            raise KafkaException(problem)


def refuse(problem):
    def step(_db):
        raise Refused(problem)

    return step


def run(consumer, participant, stopping):
    announced = False

    def on_assign(_consumer, partitions):
        nonlocal announced
        if partitions and not announced:
            announced = True
            print("ready", flush=True)

    consumer.subscribe([TOPIC], on_assign=on_assign)
    try:
        while not stopping():
            message = consumer.poll(0.5)
            if message is None:
                continue
            if message.error():
                if message.error().fatal():
                    raise KafkaException(message.error())
                log.warning("consumer: %s", message.error().str())
                continue
            try:
                participant.handle(message)
            except (DatabaseDown, KafkaException) as e:
                if isinstance(e, KafkaException) and e.args[0].fatal():
                    raise
                # Waits without standing still: the same record comes again from the next polls, its offset uncommitted.
                log.warning("waiting, at offset %s: %s", message.offset(), e)
                consumer.seek(TopicPartition(message.topic(), message.partition(), message.offset()))
                time.sleep(0.2)
                continue
            try:
                consumer.commit(message, asynchronous=False)
            except KafkaException as e:  # the partition may be another node's now: there the record comes again, harmlessly
                log.warning("offset %s not committed: %s", message.offset(), e)
    finally:
        consumer.close()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--brokers", required=True)
    arguments.add_argument("--database", required=True)
    arguments = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.append(True))  # the record in hand is finished first
    brokers = {"bootstrap.servers": arguments.brokers}
    consumer = Consumer(brokers | {"group.id": SERVICE, "enable.auto.commit": False, "auto.offset.reset": "earliest"})
    # A reply topic that does not exist is found out after 3 seconds, and is told from a broker that is away by the longer 10.
    waits = {"delivery.timeout.ms": 10_000, "topic.metadata.propagation.max.ms": 3_000}
    producer = Producer(brokers | {"acks": "all", "enable.idempotence": True} | waits)
    run(consumer, Participant(arguments.database, producer), lambda: stop)


if __name__ == "__main__":
    main()
