"""The real thing against a real broker: KAFKA_BROKERS=127.0.0.1:9092 python -m unittest test_broker

Plays the orchestrator by hand. The broker should be a scratch one: it gets the topics of the example.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest
import uuid

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

import test_loyalty

TOPICS = ("loyalty.commands", "loyalty.commands.dlt", "shop.replies")
HERE = os.path.dirname(os.path.abspath(__file__))


class Broker(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.brokers = os.environ.get("KAFKA_BROKERS")
        if not cls.brokers:
            raise AssertionError("KAFKA_BROKERS is not set: this test needs a broker, like KAFKA_BROKERS=127.0.0.1:9092")
        admin = AdminClient({"bootstrap.servers": cls.brokers})
        for creation in admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1) for name in TOPICS]).values():
            try:
                creation.result(30)
            except KafkaException as e:
                if e.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        cls.producer = Producer({"bootstrap.servers": cls.brokers, "acks": "all", "message.max.bytes": 1_048_576})
        cls.consumer = Consumer({"bootstrap.servers": cls.brokers, "group.id": f"test-{uuid.uuid4()}", "enable.auto.commit": False})
        cls.addClassCleanup(cls.consumer.close)
        ends = []
        for topic in TOPICS[1:]:
            for partition in range(2):  # only what comes from now on
                ends.append(TopicPartition(topic, partition, cls.end(topic, partition)))
        cls.consumer.assign(ends)
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.database = os.path.join(directory.name, "loyalty.db")
        cls.log = open(os.path.join(directory.name, "log"), "w+")
        cls.addClassCleanup(cls.log.close)
        cls.start()
        cls.addClassCleanup(lambda: cls.stop())

    @classmethod
    def end(cls, topic, partition):
        until = time.monotonic() + 30
        while True:
            try:
                return cls.consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1]
            except KafkaException:  # a new topic has no leader yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    @classmethod
    def start(cls):
        cls.process = cls.node()

    @classmethod
    def node(cls):
        command = [sys.executable, os.path.join(HERE, "loyalty.py"), "--brokers", cls.brokers, "--database", cls.database]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=cls.log, text=True)
        line = process.stdout.readline()  # after a SIGKILL the group waits for the dead one: up to 45 seconds
        if line != "ready\n":
            cls.log.seek(0)
            raise AssertionError(f"loyalty.py is not ready, but says {line!r} and\n{cls.log.read()}")
        return process

    @classmethod
    def stop(cls, name=signal.SIGTERM):
        cls.process.send_signal(name)
        cls.process.stdout.close()
        return cls.process.wait(20)

    def setUp(self):
        self.saga, self.customer, self.mine = str(uuid.uuid4()), f"customer-{uuid.uuid4()}", set()

    def publish(self, saga, op="do", points=10, value=None, partition=0, **changes):
        payload = json.dumps({"customer": self.customer, "points": points}).encode() if value is None else value
        message = test_loyalty.command(saga, op, payload, **changes)
        self.put(saga, message.value(), message.headers(), partition)

    def put(self, key, value, headers, partition=0):
        self.mine.add(key.encode())
        self.producer.produce("loyalty.commands", key=key, value=value, headers=headers, partition=partition)
        self.assertEqual(self.producer.flush(10), 0)

    def poll(self, seconds):
        """The next record that belongs to this test: repeats of an earlier one's may always come."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            message = self.consumer.poll(left)
            if message is not None:
                self.assertIsNone(message.error())
                if message.key() in self.mine:
                    return message
        return None

    def receive(self, topic="shop.replies", within=10.0):
        """The next record: (key, value, headers)."""
        message = self.poll(within)
        self.assertIsNotNone(message, f"nothing came on {topic} within {within} seconds")
        self.assertEqual(message.topic(), topic)
        return message.key(), message.value(), {name: value.decode() for name, value in message.headers()}

    def silence(self, seconds):
        message = self.poll(seconds)
        self.assertIsNone(message and (message.topic(), message.value()))

    def answer(self, saga, within=10.0):
        key, value, headers = self.receive(within=within)
        self.assertEqual((key.decode(), headers["ce_sagaid"], headers["ce_subject"]), (saga, saga, saga))
        return headers["ce_sagaoutcome"], json.loads(value)

    def balance(self):
        db = sqlite3.connect(self.database)
        try:
            return dict(db.execute("SELECT customer, points FROM balance").fetchall()).get(self.customer)
        finally:
            db.close()

    def committed(self, partition=0):
        reader = Consumer({"bootstrap.servers": self.brokers, "group.id": "loyalty"})
        try:
            return reader.committed([TopicPartition("loyalty.commands", partition)], timeout=10)[0].offset
        finally:
            reader.close()

    def test_success_duplicate_undo_late(self):
        self.publish(self.saga)
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))
        self.publish(self.saga, ce_sagaattempt="2")
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))
        self.assertEqual(self.balance(), 10)
        for _ in range(2):
            self.publish(self.saga, "undo", value=b"null")
            self.assertEqual(self.answer(self.saga), ("success", None))
            self.assertEqual(self.balance(), 0)
        self.publish(self.saga)
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))
        self.assertEqual(self.balance(), 0)

    def test_late_after_an_undo_that_came_first(self):
        self.publish(self.saga, "undo", value=b"null")
        self.assertEqual(self.answer(self.saga), ("success", None))
        self.publish(self.saga)
        self.assertEqual(self.answer(self.saga), ("fail", {"error": "the undo came first"}))
        self.assertIsNone(self.balance())

    def test_a_business_no(self):
        for points in (0, -5, 10_001):
            saga = str(uuid.uuid4())
            self.publish(saga, points=points)
            outcome, payload = self.answer(saga)
            self.assertEqual((outcome, list(payload)), ("fail", ["error"]))

    def test_headers_of_a_reply(self):
        self.publish(self.saga, ce_sagagen="2", ce_sagaattempt="3")
        _, _, headers = self.receive()
        wanted = {"ce_type": "loyalty.award.v1.reply", "ce_source": "loyalty", "ce_sagastep": "award", "ce_sagagen": "2", "ce_sagaattempt": "3", "ce_sagaop": "do", "tracestate": "vendor=1", "baggage": "tenant=blue"}
        self.assertEqual({name: headers.get(name) for name in wanted}, wanted)
        self.assertRegex(headers["traceparent"], f"^00-{test_loyalty.TRACE}-[0-9a-f]{{16}}-01$")
        self.assertNotIn("b7ad6b7169203331", headers["traceparent"])

    def test_rubbish_is_put_aside_and_the_next_is_handled_within_a_second(self):
        self.publish(self.saga)
        self.answer(self.saga)  # warm
        began = time.monotonic()
        self.put(self.saga + "?", b"\x00\xff", [("what", b"\xff")])
        saga = str(uuid.uuid4())
        self.publish(saga)
        dead, reply = None, None
        while not (dead and reply):
            message = self.poll(5)
            self.assertIsNotNone(message, "nothing came within 5 seconds")
            dead, reply = (message, reply) if message.topic() == "loyalty.commands.dlt" else (dead, message)
        took = time.monotonic() - began
        self.assertLess(took, 1)
        self.assertEqual((dead.key(), dead.value()), (self.saga.encode() + b"?", b"\x00\xff"))
        headers = dict(dead.headers())
        self.assertEqual(headers["what"], b"\xff")
        self.assertIn(b"header missing", headers["saga-dead-letter-reason"])
        self.assertEqual((headers["saga-dead-letter-topic"], headers["saga-dead-letter-partition"]), (b"loyalty.commands", b"0"))
        self.assertEqual(json.loads(reply.value()), {"balance": 20})

    def test_unknown_type(self):
        self.publish(self.saga, ce_type="loyalty.award.v9")
        answers = {}
        for _ in range(2):
            message = self.poll(10)
            self.assertIsNotNone(message, "nothing came within 10 seconds")
            answers[message.topic()] = dict(message.headers())
        self.assertEqual(answers["shop.replies"]["ce_sagaoutcome"], b"fail")
        self.assertIn(b"unknown type", answers["loyalty.commands.dlt"]["saga-dead-letter-reason"])
        self.publish(self.saga)
        self.assertEqual(self.answer(self.saga)[0], "fail")

    def test_a_reply_topic_that_is_not_there(self):
        for number, topic in enumerate(("nobody.replies", "no topic's name", "x" * 300)):
            with self.subTest(topic):
                self.publish(str(uuid.uuid4()), ce_replyto=topic)
                other = str(uuid.uuid4())
                self.publish(other)
                _, _, headers = self.receive("loyalty.commands.dlt", within=20)
                self.assertIn("the reply cannot be published", headers["saga-dead-letter-reason"])
                self.assertEqual(self.answer(other), ("success", {"balance": 20 * number + 20}))

    def test_a_record_as_large_as_the_broker_takes(self):
        for value, filler, wanted in ((1_000_000, 47_000, (10_000, 47_000)), (47_000, 1_000_000, (10_000, 0))):
            self.put(self.saga, b"x" * value, [("filler", b"y" * filler)])
            _, value, headers = self.receive("loyalty.commands.dlt")
            self.assertEqual((len(value), len(headers.get("filler", ""))), wanted)
            self.assertIn("saga-dead-letter-reason", headers)

    def test_waits_while_the_database_is_locked(self):
        self.publish(self.saga)
        self.answer(self.saga)
        before = self.committed()
        lock = sqlite3.connect(self.database, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        sagas = [str(uuid.uuid4()) for _ in range(6)]
        for number, saga in enumerate(sagas):
            self.publish(saga, partition=number % 2)
        self.silence(4)
        self.assertEqual(self.committed(), before)
        lock.execute("ROLLBACK")
        lock.close()
        replies = [self.receive() for _ in sagas]
        self.assertEqual(sorted(key.decode() for key, _, _ in replies), sorted(sagas))
        self.assertEqual(self.balance(), 70)

    def test_a_node_joins_and_leaves_while_the_database_is_locked(self):
        lock = sqlite3.connect(self.database, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        sagas = [str(uuid.uuid4()) for _ in range(20)]
        for number, saga in enumerate(sagas):
            self.publish(saga, points=1, partition=number % 2)
        other = self.node()
        self.addCleanup(other.stdout.close)
        self.addCleanup(other.kill)
        self.silence(2)
        other.terminate()
        self.assertEqual(other.wait(20), 0)
        lock.execute("ROLLBACK")
        lock.close()
        replies = {}
        while len(replies) < len(sagas):
            key, value, _ = self.receive(within=20)
            self.assertEqual(replies.setdefault(key.decode(), value), value)
        self.assertEqual((set(replies), self.balance()), (set(sagas), 20))

    def test_stops_gracefully_and_goes_on_after(self):
        began = time.monotonic()
        self.assertEqual(self.stop(), 0)
        self.assertLess(time.monotonic() - began, 5)
        self.publish(self.saga)
        self.start()
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))
        self.publish(self.saga)
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))
        self.silence(1)

    def test_killed_amid_its_work_loses_and_doubles_nothing(self):
        sagas = [str(uuid.uuid4()) for _ in range(100)]
        for number, saga in enumerate(sagas):
            self.publish(saga, points=1, partition=number % 2)
        first = self.receive()
        self.stop(signal.SIGKILL)
        self.start()
        balances = {first[0].decode(): first[1]}
        until = time.monotonic() + 60
        while len(balances) < len(sagas) and time.monotonic() < until:
            message = self.poll(5)
            if message:
                self.assertEqual(balances.setdefault(message.key().decode(), message.value()), message.value())
        self.assertEqual(set(balances), set(sagas))
        self.assertEqual(sorted(json.loads(value)["balance"] for value in balances.values()), list(range(1, 101)))
        self.assertEqual(self.balance(), 100)


if __name__ == "__main__":
    unittest.main()
