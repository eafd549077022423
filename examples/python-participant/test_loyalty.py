"""The contract's rules without a broker: python -m unittest test_loyalty"""

import json
import logging
import os
import sqlite3
import tempfile
import unittest
import uuid
from types import SimpleNamespace
from unittest import mock

from confluent_kafka import KafkaError, KafkaException

import loyalty

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Message:
    def __init__(self, headers, value, key=b"key", offset=7):
        self._headers, self._value, self._key, self._offset = headers, value, key, offset

    def headers(self):
        return self._headers

    def value(self):
        return self._value

    def key(self):
        return self._key

    def topic(self):
        return loyalty.TOPIC

    def partition(self):
        return 3

    def offset(self):
        return self._offset

    def error(self):
        return None


class FakeProducer:
    """Remembers what it acknowledged. `problems` are met first, one a record."""

    def __init__(self):
        self.sent, self.problems, self.waiting, self.leader = [], [], [], 1

    def list_topics(self, topic, timeout):
        if self.leader is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        partitions = {0: SimpleNamespace(leader=self.leader)}
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=partitions)})

    def produce(self, topic, key, value, headers, on_delivery):
        self.waiting.append((topic, key, value, dict(headers), on_delivery))

    def flush(self, _timeout):
        for *record, on_delivery in self.waiting:
            problem = self.problems.pop(0) if self.problems else None
            if problem is None:
                self.sent.append(record)
            on_delivery(problem and KafkaError(problem), None)
        self.waiting = []


def command(saga, op="do", value=b'{"customer": "ann", "points": 10}', **changes):
    headers = {
        "ce_specversion": "1.0",
        "ce_type": "loyalty.award.v1" if op == "do" else "loyalty.revoke.v1",
        "ce_id": f"{saga}/award" + ("/undo" if op == "undo" else ""),
        "ce_source": "shop",
        "ce_subject": saga,
        "ce_time": "2024-01-01T00:00:00Z",
        "content-type": "application/json",
        "ce_sagaid": saga,
        "ce_sagastep": "award",
        "ce_sagagen": "0",
        "ce_sagaop": op,
        "ce_sagaattempt": "1",
        "ce_replyto": "shop.replies",
        "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
        "tracestate": "vendor=1",
        "baggage": "tenant=blue",
        **changes,
    }
    return Message([(k, v if isinstance(v, bytes) else v.encode()) for k, v in headers.items() if v is not None], value)


class Case(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "loyalty.db")
        self.producer = FakeProducer()
        self.participant = loyalty.Participant(self.path, self.producer)
        self.addCleanup(lambda: self.participant.db and self.participant.db.close())
        self.saga = str(uuid.uuid4())

    def send(self, *arguments, **changes):
        """Handles a command; what was published because of it."""
        before = len(self.producer.sent)
        self.participant.handle(command(*arguments, **changes))
        return self.producer.sent[before:]

    def answer(self, *arguments, **changes):
        ((topic, key, value, headers),) = self.send(*arguments, **changes)
        self.assertEqual((topic, key), ("shop.replies", arguments[0]))
        return headers["ce_sagaoutcome"], json.loads(value)

    def rows(self, sql):
        with sqlite3.connect(self.path) as db:
            return db.execute(sql).fetchall()

    def balance(self):
        return dict(self.rows("SELECT customer, points FROM balance")).get("ann", 0)

    def barrier(self):
        return self.rows("SELECT outcome, reply, undone FROM saga_barrier")


class Barrier(Case):
    def test_do_nothing_yet(self):
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))
        self.assertEqual(self.barrier(), [("success", '{"balance": 10}', 0)])

    def test_do_again_is_answered_the_same_without_a_second_effect(self):
        first = self.answer(self.saga)
        self.answer(str(uuid.uuid4()))  # in between somebody else's
        self.assertEqual(self.answer(self.saga, ce_sagaattempt="2"), first)
        self.assertEqual(self.balance(), 20)

    def test_fail_is_remembered_though_it_would_work_now(self):
        other = str(uuid.uuid4())
        self.answer(other, value=b'{"customer": "ann", "points": 10000}')
        no = self.answer(self.saga)
        self.assertEqual(no, ("fail", {"error": "no customer may have more than 10000 points"}))
        self.answer(other, "undo")
        self.assertEqual(self.answer(self.saga), no)
        self.assertEqual(self.balance(), 0)

    def test_do_after_the_undo_that_came_first(self):
        self.assertEqual(self.answer(self.saga, "undo", b""), ("success", None))
        for _ in range(2):
            self.assertEqual(self.answer(self.saga), ("fail", {"error": "the undo came first"}))
        self.assertEqual((self.balance(), self.barrier()), (0, [(None, None, 1)]))

    def test_undo_of_a_success_happens_once(self):
        self.answer(self.saga)
        self.answer(str(uuid.uuid4()))
        for _ in range(2):
            self.assertEqual(self.answer(self.saga, "undo", b"null"), ("success", None))
            self.assertEqual(self.balance(), 10)

    def test_do_late_after_its_undo_is_answered_as_before(self):
        first = self.answer(self.saga)
        self.answer(self.saga, "undo")
        self.assertEqual(self.answer(self.saga), first)
        self.assertEqual(self.balance(), 0)

    def test_undo_of_a_fail_does_nothing(self):
        no = self.answer(self.saga, value=b'{"customer": "ann", "points": 0}')
        self.assertEqual(no, ("fail", {"error": "points have to be positive"}))
        self.assertEqual(self.answer(self.saga, "undo"), ("success", None))
        self.assertEqual(self.answer(self.saga), no)

    def test_generations_and_steps_are_apart(self):
        self.answer(self.saga)
        self.answer(self.saga, ce_sagagen="1")
        self.answer(self.saga, ce_sagastep="bonus")
        self.answer(self.saga, "undo", ce_sagagen="1")
        self.assertEqual(self.balance(), 20)

    def test_exactly_the_most_is_allowed(self):
        self.assertEqual(self.answer(self.saga, value=b'{"customer": "ann", "points": 10000}')[0], "success")

    def test_a_saga_is_the_same_in_capitals(self):
        self.answer(self.saga)
        ((_, key, _, headers),) = self.send(self.saga.upper())
        self.assertEqual((key, headers["ce_sagaid"], self.balance()), (self.saga.upper(), self.saga.upper(), 10))

    def test_survives_a_new_process(self):
        first = self.answer(self.saga)
        self.participant.db.close()
        self.participant = loyalty.Participant(self.path, self.producer)
        self.assertEqual(self.answer(self.saga), first)


class Work(Case):
    def work(self, work):
        this = ("do", "loyalty.award.v1")
        self.addCleanup(loyalty.WORK.__setitem__, this, loyalty.WORK[this])
        loyalty.WORK[this] = (loyalty.read_award, work)

    def half(self, problem):
        def work(db, _command, _payload):
            db.execute("INSERT INTO balance VALUES ('ann', 1)")
            raise problem

        self.work(work)

    def test_fail_takes_its_writes_back_and_keeps_the_row(self):
        self.half(loyalty.Refused("no"))
        self.assertEqual(self.answer(self.saga), ("fail", {"error": "no"}))
        self.assertEqual((self.balance(), self.barrier()), (0, [("fail", '{"error": "no"}', 0)]))

    def test_retry_leaves_nothing(self):
        self.half(loyalty.TryLater("busy"))
        self.assertEqual(self.answer(self.saga), ("retry", {"error": "busy"}))
        self.assertEqual((self.balance(), self.barrier()), (0, []))

    def test_a_bug_is_unknown_and_leaves_nothing(self):
        for bug in (KeyError("secret"), sqlite3.OperationalError("no such table")):
            self.half(bug)
            self.assertEqual(self.answer(self.saga), ("unknown", {"error": "internal error"}))
            self.assertEqual((self.balance(), self.barrier()), (0, []))

    def test_numbers_come_back_as_they_were_sent(self):
        loyalty.WORK["do", "loyalty.award.v1"] = (loyalty.read_json, lambda _db, _command, payload: payload)
        self.addCleanup(loyalty.WORK.__setitem__, ("do", "loyalty.award.v1"), (loyalty.read_award, loyalty.award))
        largest, smallest = str(2**128 - 1), str(-(2**127))
        numbers = f"[{largest}, {smallest}, 0.1, -0.0, 5e-324, 2.225073858507201e-308, 1.7976931348623157e+308]"
        self.assertEqual(self.send(self.saga, value=numbers.encode())[0][2], numbers)

    def test_what_json_has_no_number_for_is_not_answered(self):
        self.work(lambda _db, _command, _payload: {"balance": float("nan")})
        self.assertEqual(self.answer(self.saga), ("unknown", {"error": "internal error"}))
        self.assertEqual((self.balance(), self.barrier()), (0, []))

    def test_a_locked_database_is_waited_for(self):
        self.answer(str(uuid.uuid4()))
        self.participant.db.execute("PRAGMA busy_timeout = 10")
        other = sqlite3.connect(self.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with self.assertRaises(sqlite3.OperationalError):
            self.send(self.saga)
        other.execute("ROLLBACK")
        other.close()
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 20}))

    def test_a_database_that_cannot_be_opened_is_waited_for(self):
        self.participant.database = os.path.join(os.path.dirname(self.path), "away", "loyalty.db")
        with self.assertRaises(sqlite3.OperationalError):
            self.send(self.saga)
        self.participant.database = self.path
        self.assertEqual(self.answer(self.saga)[0], "success")


class Replies(Case):
    def test_headers(self):
        ((_, _, _, headers),) = self.send(self.saga, ce_sagaattempt="4", something=b"\xff")
        ((_, _, _, again),) = self.send(self.saga, ce_sagaattempt="5")
        fixed = {
            "ce_specversion": "1.0",
            "ce_type": "loyalty.award.v1.reply",
            "ce_source": "loyalty",
            "ce_subject": self.saga,
            "content-type": "application/json",
            "ce_sagaid": self.saga,
            "ce_sagastep": "award",
            "ce_sagagen": "0",
            "ce_sagaop": "do",
            "ce_sagaattempt": "4",
            "ce_sagaoutcome": "success",
            "tracestate": "vendor=1",
            "baggage": "tenant=blue",
        }
        self.assertEqual({name: headers[name] for name in fixed}, fixed)
        self.assertEqual(set(headers) - set(fixed), {"ce_id", "ce_time", "traceparent"})
        self.assertEqual(str(uuid.UUID(headers["ce_id"])), headers["ce_id"])
        self.assertRegex(headers["ce_time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertRegex(headers["traceparent"], f"^00-{TRACE}-[0-9a-f]{{16}}-01$")
        self.assertNotIn("b7ad6b7169203331", headers["traceparent"])
        self.assertNotEqual(headers["ce_id"], again["ce_id"])
        self.assertEqual(again["ce_sagaattempt"], "5")

    def test_a_trace_that_is_absent_or_cannot_be_read(self):
        for parent in (None, "rubbish", f"00-{TRACE}-{'0' * 16}-01"):
            ((_, _, _, headers),) = self.send(self.saga, traceparent=parent)
            self.assertEqual({"traceparent", "tracestate", "baggage"} & set(headers), {"baggage"})

    def test_a_reply_that_is_not_acknowledged_is_sent_again_without_a_second_effect(self):
        self.producer.problems = [KafkaError._MSG_TIMED_OUT]
        with self.assertRaises(KafkaException):
            self.send(self.saga)
        self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))

    def test_a_reply_topic_that_is_not_there_does_not_stop_the_partition(self):
        self.producer.problems = [KafkaError.UNKNOWN_TOPIC_OR_PART]
        ((topic, _, _, headers),) = self.send(self.saga)
        self.assertEqual(topic, "loyalty.commands.dlt")
        self.assertIn("the reply cannot be published", headers["saga-dead-letter-reason"])

    def test_a_reply_topic_that_is_away_stops_the_partition_for_a_minute_while_the_broker_works(self):
        with mock.patch.object(loyalty.time, "monotonic") as clock:
            for clock.return_value, leader in ((0, 1), (59, 1), (60, -1), (100, 1), (160, None), (161, 1), (220, 1)):
                self.producer.problems, self.producer.leader = [KafkaError._MSG_TIMED_OUT], leader
                with self.assertRaises(KafkaException):
                    self.send(self.saga)
            clock.return_value = 221
            self.producer.problems = [KafkaError._MSG_TIMED_OUT]
            ((topic, _, _, headers),) = self.send(self.saga)
            self.assertEqual(topic, "loyalty.commands.dlt")
            self.assertIn("the reply cannot be published", headers["saga-dead-letter-reason"])
            # It is answered as soon as that is possible, and has its minute anew.
            self.assertEqual(self.answer(self.saga), ("success", {"balance": 10}))
            self.producer.problems = [KafkaError._MSG_TIMED_OUT]
            with self.assertRaises(KafkaException):
                self.send(self.saga)


class DeadLetters(Case):
    def dead(self, sent):
        topic, key, value, headers = sent
        self.assertEqual((topic, key), ("loyalty.commands.dlt", b"key"))
        place = [headers[f"saga-dead-letter-{name}"] for name in ("topic", "partition", "offset")]
        self.assertEqual(place, ["loyalty.commands", "3", "7"])
        self.assertRegex(headers["saga-dead-letter-time"], "Z$")
        return headers["saga-dead-letter-reason"], value, headers

    def test_no_cloudevent(self):
        for headers in (None, [], [("a", b"b")], [("ce_id", None)]):
            self.participant.handle(Message(headers, b"\x00rubbish"))
            reason, value, _ = self.dead(self.producer.sent.pop())
            self.assertEqual((self.producer.sent, value), ([], b"\x00rubbish"))
            self.assertIn("header missing", reason)

    def test_attributes_missing_or_unreadable(self):
        needed = ("ce_specversion", "ce_id", "ce_type", "ce_source", "ce_replyto", "ce_sagaid", "ce_sagastep", "ce_sagagen", "ce_sagaop", "ce_sagaattempt")
        for bad in [
            *({name: None} for name in needed),
            *({name: b"\xff"} for name in needed),
            {"ce_specversion": "0.3"},
            {"ce_sagaid": "17"},
            {"ce_sagagen": "-1"},
            {"ce_sagaattempt": "one"},
            {"ce_sagaop": "redo"},
        ]:
            with self.subTest(bad):
                (sent,) = self.send(self.saga, **bad)
                reason, value, headers = self.dead(sent)
                self.assertIn(*bad, reason)
                self.assertEqual((value, headers["baggage"]), (b'{"customer": "ann", "points": 10}', b"tenant=blue"))

    def test_what_is_not_needed_may_be_absent(self):
        self.assertEqual(self.answer(self.saga, ce_subject=None, ce_time=None, **{"content-type": None})[0], "success")

    def test_a_command_that_cannot_be_handled_fails_for_ever(self):
        rubbish = [b"", None, b"{", b"\xff", b"null", b"[1]", b'{"customer": "ann"}', b'{"customer": "ann", "points": true}', b'{"customer": "ann", "points": 1.5}', b'{"customer": "\\ud800", "points": 1}', b"[" * 100_000]
        for changes in [{"ce_type": "loyalty.award.v9"}, {"ce_type": "loyalty.revoke.v1"}, *({"value": value} for value in rubbish)]:
            with self.subTest(changes):
                saga = str(uuid.uuid4())
                dead, (_, _, value, headers) = self.send(saga, **changes)
                self.assertTrue(self.dead(dead)[0])
                self.assertEqual(headers["ce_sagaoutcome"], "fail")
                self.assertEqual(self.answer(saga), ("fail", json.loads(value)))
        self.assertEqual(self.balance(), 0)

    def test_an_undo_that_cannot_be_handled_leaves_the_row(self):
        self.answer(self.saga)
        dead, (_, _, _, headers) = self.send(self.saga, "undo", ce_type="loyalty.award.v1")
        self.dead(dead)
        self.assertEqual((headers["ce_sagaoutcome"], headers["ce_sagaop"]), ("fail", "undo"))
        self.assertEqual(self.barrier(), [("success", '{"balance": 10}', 0)])
        self.assertEqual(self.answer(self.saga, "undo"), ("success", None))

    def test_a_dead_letter_that_is_not_acknowledged_is_not_given_up(self):
        self.producer.problems = [KafkaError._MSG_TIMED_OUT]
        with self.assertRaises(KafkaException):
            self.participant.handle(Message([], b"x"))

    def test_cut_if_it_must_be(self):
        self.producer.problems = [KafkaError.MSG_SIZE_TOO_LARGE]
        self.participant.handle(Message([("a", b"b")], b"x" * 20_000))
        _, value, headers = self.dead(self.producer.sent[0])
        self.assertEqual((len(value), headers["a"]), (10_000, b"b"))

    def test_a_dead_letter_again_says_where_it_was_last(self):
        self.participant.handle(Message([("saga-dead-letter-offset", b"1"), ("saga-dead-letter-by", b"hand"), ("a", b"b")], b"x"))
        self.assertEqual(len(self.dead(self.producer.sent[0])[2]), 6)


class Consumer:
    def __init__(self, messages):
        self.messages, self.done, self.seeks, self.closed = messages, [], [], False

    def subscribe(self, _topics, on_assign):
        on_assign(self, ["a partition"])

    def poll(self, _timeout):
        return self.messages[len(self.done)] if len(self.done) < len(self.messages) else None

    def seek(self, place):
        self.seeks.append(place.offset)

    def commit(self, message, asynchronous):
        self.done.append(message.offset())

    def close(self):
        self.closed = True


class Run(Case):
    def test_waits_for_broker_or_database_without_committing(self):
        self.producer.problems = [KafkaError._MSG_TIMED_OUT]
        consumer = Consumer([command(self.saga), Message([], b"", offset=8)])
        loyalty.run(consumer, self.participant, lambda: len(consumer.done) == 2)
        self.assertEqual((consumer.seeks, consumer.done, consumer.closed), ([7], [7, 8], True))
        self.assertEqual([record[0] for record in self.producer.sent], ["shop.replies", "loyalty.commands.dlt"])


if __name__ == "__main__":
    unittest.main()
