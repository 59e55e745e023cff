"""The backlog: everything put is taken in order, waits, or is counted as not sent."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmon.ipfix.block import Block
from flowmon.sinks import backlog as backlog_module
from flowmon.sinks.backlog import Backlog, NotSent
from flowmon.sinks.spool import Lost, Spool, SpooledBlock

LARGE = 1 << 40
MESSAGE = 100  # bytes
NOTHING = (0, 0, 0)


@pytest.fixture(scope="module", autouse=True)
def _apart() -> Iterator[None]:
    """Blocks stay as they are put, but for the tests of putting together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backlog_module, "SMALL_BYTES", 0)
        yield


def block(*names: int) -> Block:
    """A message for each name, which is its number of records too."""
    counts = np.array(names, np.int64)
    return Block(
        content=np.zeros(MESSAGE * len(names), np.uint8),
        ends=np.arange(1, len(names) + 1) * MESSAGE,
        records=counts,
        packets=counts * 10,
        octets=counts * 1000,
        templates={256: b"\x01\x00\x00\x00"},
    )


def names(taken: Block | None) -> list[int]:
    assert taken is not None
    return taken.records.tolist()


def take_all(backlog: Backlog) -> list[list[int]]:
    """The names in each block, none of which is sent."""
    found = []
    while (taken := backlog.take(0)) is not None:
        found.append(names(taken))
    return found


def lost(backlog: Backlog) -> tuple[int, int, int]:
    return backlog.not_sent.records, backlog.not_sent.packets, backlog.not_sent.octets


def counted(*lost_names: int) -> tuple[int, int, int]:
    return sum(lost_names), 10 * sum(lost_names), 1000 * sum(lost_names)


def file_size() -> int:
    """Of a block of one message."""
    with tempfile.TemporaryDirectory() as directory:
        spool = Spool(Path(directory), LARGE)
        spool.append(block(1))
        spool.close()
        return spool.waiting_bytes


ONE_FILE = file_size()


@pytest.fixture
def spooled(tmp_path: Path) -> Iterator[Backlog]:
    """Two messages fit into memory, everything on disk."""
    made = Backlog(2 * MESSAGE, Spool(tmp_path, LARGE))
    yield made
    made.close()


def files(directory: Path) -> int:
    return len(list(directory.glob("*.arrow")))


def full_disk(*_: object) -> list[Lost]:
    raise OSError(28, "No space left on device")


def test_small_blocks_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "SMALL_BYTES", 3 * MESSAGE)
    backlog = Backlog(LARGE)
    for name in (1, 2, 3, 4, 5):
        backlog.put(block(name))
    backlog.put(replace(block(6), templates={257: b"other"}))
    assert (backlog.waiting_records, backlog.waiting_bytes) == (21, 6 * MESSAGE)
    first, second = backlog.take(0), backlog.take(0)
    assert (names(first), names(second)) == ([1, 2, 3], [4, 5, 6])
    assert first.ends.tolist() == [MESSAGE, 2 * MESSAGE, 3 * MESSAGE]
    assert second.templates == {256: b"\x01\x00\x00\x00", 257: b"other"}
    assert (second.packets.sum(), second.octets.sum()) == counted(4, 5, 6)[1:]


def test_nothing_is_put_to_a_block_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its file would go with it, when it is sent."""
    monkeypatch.setattr(backlog_module, "SMALL_BYTES", LARGE)
    backlog = Backlog(0, Spool(tmp_path, LARGE))
    backlog.put(block(1))
    taken = backlog.take(0)
    assert taken is not None
    backlog._limit = LARGE
    backlog.put_back([taken])
    backlog.put(block(2))
    assert take_all(backlog) == [[1], [2]]
    backlog.close()


def test_filled_and_empty(tmp_path: Path) -> None:
    backlog = Backlog(4 * MESSAGE)
    assert backlog.is_empty
    backlog.put(block(1, 2))
    assert (backlog.is_empty, backlog.is_filled) == (False, False)
    backlog.put(block(3))
    assert backlog.is_filled
    take_all(backlog)
    assert (backlog.is_empty, backlog.is_filled) == (True, False)
    spooled = Backlog(MESSAGE, Spool(tmp_path, LARGE))
    spooled.put(block(1, 2, 3))
    assert (spooled.is_empty, spooled.is_filled) == (False, False)
    spooled.close()


def test_order_in_memory() -> None:
    backlog = Backlog(LARGE)
    for name in (1, 2, 3):
        backlog.put(block(name))
    assert (backlog.waiting_records, backlog.waiting_bytes, backlog.spooled_records) == (6, 3 * MESSAGE, 0)
    assert take_all(backlog) == [[1], [2], [3]]
    assert backlog.not_sent == NotSent()


def test_empty_blocks_are_ignored(spooled: Backlog, tmp_path: Path) -> None:
    for backlog in (Backlog(0), spooled):
        backlog.put(block())
        backlog.put(block(1).after(1))
        assert backlog.take(0) is None
    assert files(tmp_path) == 0


def test_memory_bound_drops_the_oldest_and_counts_them() -> None:
    backlog = Backlog(3 * MESSAGE)
    before_ns = time.time_ns()
    for name in (1, 2, 3, 4):
        backlog.put(block(name))
    between_ns = time.time_ns()
    assert lost(backlog) == counted(1)
    backlog.put(block(5, 6))
    assert lost(backlog) == counted(1, 2, 3)
    assert take_all(backlog) == [[4], [5, 6]]
    assert before_ns <= backlog.not_sent.first_ns <= between_ns <= backlog.not_sent.last_ns <= time.time_ns()


def test_newest_is_kept_even_if_it_alone_exceeds_the_bound() -> None:
    backlog = Backlog(MESSAGE)
    backlog.put(block(1))
    backlog.put(block(2, 3, 4))
    assert lost(backlog) == counted(1)
    assert take_all(backlog) == [[2, 3, 4]]


def test_order_across_the_edge_of_memory_and_spool(spooled: Backlog, tmp_path: Path) -> None:
    for name in (1, 2, 3, 4):
        spooled.put(block(name))
    assert (spooled.waiting_records, spooled.spooled_records, files(tmp_path)) == (10, 7, 2)
    assert names(spooled.take(0)) == [1]
    spooled.put(block(5))  # there is room in memory, but it is not its turn
    assert spooled.spooled_records == 12
    assert take_all(spooled) == [[2], [3], [4], [5]]
    assert lost(spooled) == NOTHING


def test_block_larger_than_memory_goes_to_the_spool(spooled: Backlog) -> None:
    spooled.put(block(1, 2, 3))
    assert spooled.spooled_records == 6
    assert take_all(spooled) == [[1, 2, 3]]


def test_file_goes_when_its_block_is_sent_and_memory_is_used_again(spooled: Backlog, tmp_path: Path) -> None:
    for name in (1, 2, 3):
        spooled.put(block(name))
    taken = [spooled.take(0) for _ in range(3)]
    spooled.put(block(4))
    assert files(tmp_path) == 2  # 3 may still come back, so 4 is behind it
    for each in (*taken, spooled.take(0)):
        assert each is not None
        spooled.sent(each)
    assert files(tmp_path) == 0
    spooled.put(block(5))
    assert (spooled.waiting_records, spooled.spooled_records) == (5, 0)


def test_put_back_in_front() -> None:
    backlog = Backlog(LARGE)
    for name in ((1, 2, 3), (4,), (5,)):
        backlog.put(block(*name))
    first, second = backlog.take(0), backlog.take(0)
    assert first is not None
    assert second is not None
    backlog.put_back([first.after(2), second])
    assert take_all(backlog) == [[3], [4], [5]]


def test_put_back_beyond_the_bound_drops_the_oldest() -> None:
    backlog = Backlog(2 * MESSAGE)
    backlog.put(block(1))
    backlog.put(block(2))
    first = backlog.take(0)
    assert first is not None
    backlog.put(block(3))
    backlog.put_back([first])
    assert lost(backlog) == counted(1)
    assert take_all(backlog) == [[2], [3]]


def test_put_back_beyond_the_bound_moves_the_newest_to_the_spool(spooled: Backlog) -> None:
    for name in range(1, 6):
        spooled.put(block(name))
    taken = [each for each in (spooled.take(0) for _ in range(4)) if each is not None]
    spooled.put_back(taken)
    assert (spooled.waiting_records, spooled.spooled_records) == (15, 12)
    assert take_all(spooled) == [[1], [2], [3], [4], [5]]
    assert lost(spooled) == NOTHING


def test_put_back_of_a_block_of_which_all_was_sent(spooled: Backlog, tmp_path: Path) -> None:
    spooled.put(block(1, 2, 3))
    taken = spooled.take(0)
    assert taken is not None
    spooled.put_back([taken.after(3)])
    assert spooled.take(0) is None
    assert files(tmp_path) == 0


def test_close_without_a_spool_counts_what_waits() -> None:
    backlog = Backlog(LARGE)
    backlog.put(block(1, 2))
    backlog.put(block(3))
    assert backlog.close() == 6
    assert lost(backlog) == counted(1, 2, 3)
    assert backlog.close() == 0


def test_after_close_blocks_are_counted_and_none_is_taken(tmp_path: Path) -> None:
    for spool in (None, Spool(tmp_path, LARGE)):
        backlog = Backlog(LARGE, spool)
        assert backlog.close() == 0
        backlog.put(block(1))
        backlog.put_back([block(2)])
        assert lost(backlog) == counted(1, 2)
        assert backlog.take(60) is None


def test_after_close_the_file_of_a_block_under_way_stays(tmp_path: Path) -> None:
    backlog = Backlog(0, Spool(tmp_path, LARGE))
    backlog.put(block(1))
    backlog.put(block(2))
    first, second = backlog.take(0), backlog.take(0)
    assert first is not None
    assert second is not None
    assert backlog.close() == 0
    backlog.sent(first)
    backlog.put_back([second])
    assert lost(backlog) == NOTHING
    following = Backlog(0, Spool(tmp_path, LARGE))
    assert take_all(following) == [[1], [2]]
    following.close()


def test_order_after_close_and_in_the_next_process(tmp_path: Path) -> None:
    backlog = Backlog(3 * MESSAGE, Spool(tmp_path, LARGE))
    for name in range(1, 7):
        backlog.put(block(name))
    assert names(backlog.take(0)) == [1]
    taken = backlog.take(0)
    assert taken is not None
    backlog.put_back([taken])
    assert backlog.close() == 0
    following = Backlog(3 * MESSAGE, Spool(tmp_path, LARGE))
    following.put(block(7))
    assert take_all(following) == [[2], [3], [4], [5], [6], [7]]
    following.close()


def test_close_keeps_what_is_left_of_a_block_from_a_file(tmp_path: Path) -> None:
    backlog = Backlog(MESSAGE, Spool(tmp_path, LARGE))
    backlog.put(block(1, 2, 3))
    backlog.put(block(4))
    taken = backlog.take(0)
    assert isinstance(taken, SpooledBlock)
    backlog.put_back([taken.after(2)])
    assert (backlog.waiting_records, backlog.spooled_records) == (7, 4)
    assert backlog.close() == 0
    following = Backlog(LARGE, Spool(tmp_path, LARGE))
    assert take_all(following) == [[3], [4]]
    following.close()


def test_close_with_a_full_spool_counts_the_oldest(tmp_path: Path) -> None:
    backlog = Backlog(3 * MESSAGE, Spool(tmp_path, 3 * ONE_FILE))
    for name in (1, 2, 3, 4, 5):
        backlog.put(block(name))
    assert backlog.close() == 3
    assert lost(backlog) == counted(1, 2)
    following = Backlog(LARGE, Spool(tmp_path, LARGE))
    assert take_all(following) == [[3], [4], [5]]
    following.close()


def test_close_on_a_full_disk_counts_what_is_in_memory(
    spooled: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (1, 2, 3):
        spooled.put(block(name))
    monkeypatch.setattr(Spool, "prepend", full_disk)
    assert spooled.close() == 3
    assert lost(spooled) == counted(1, 2)


def test_spool_bound_drops_its_oldest_and_counts_them(tmp_path: Path) -> None:
    backlog = Backlog(MESSAGE, Spool(tmp_path, 2 * ONE_FILE))
    for name in (1, 2, 3, 4, 5):
        backlog.put(block(name))
    assert lost(backlog) == counted(2, 3)
    assert take_all(backlog) == [[1], [4], [5]]
    backlog.close()


def test_crash_loses_nothing_that_was_on_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    backlog = Backlog(0, spool)
    for name in (1, 2, 3):
        backlog.put(block(name))
    first, second = backlog.take(0), backlog.take(0)
    assert first is not None
    backlog.sent(first)
    spool.close()  # as the kernel does for a process that was killed
    following = Backlog(0, Spool(tmp_path, LARGE))
    assert names(second) == [2]
    assert take_all(following) == [[2], [3]]
    following.close()


def test_full_disk_is_said_once_and_counted(
    spooled: Backlog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (1, 2):
        spooled.put(block(name))
    with monkeypatch.context() as patched:
        patched.setattr(Spool, "append", full_disk)
        for name in (3, 4):
            spooled.put(block(name))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} cannot be written (No space left on device): give another directory (--ipfix-spool)"
    ]
    assert lost(spooled) == counted(3, 4)
    spooled.put(block(5))
    assert take_all(spooled) == [[1], [2], [5]]


def test_real_write_error_is_not_raised(spooled: Backlog, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        spooled.put(block(1, 2, 3))
    assert lost(spooled) == counted(1, 2, 3)
    assert spooled.take(0) is None


def test_put_back_on_a_full_disk_drops_the_oldest(spooled: Backlog, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (1, 2):
        spooled.put(block(name))
    first = spooled.take(0)
    assert first is not None
    spooled.put(block(3))
    monkeypatch.setattr(os, "fsync", full_disk)
    spooled.put_back([first])
    assert lost(spooled) == counted(1)
    assert take_all(spooled) == [[2], [3]]


def test_broken_file_is_counted_and_the_next_is_taken(spooled: Backlog, tmp_path: Path) -> None:
    for name in (1, 2, 3, 4, 5):
        spooled.put(block(name))
    for path in sorted(tmp_path.glob("*.arrow"))[:2]:
        path.write_bytes(b"")
    assert take_all(spooled) == [[1], [2], [5]]
    assert lost(spooled) == counted(3, 4)


def test_take_waits_no_longer_than_the_timeout() -> None:
    started = time.monotonic()
    assert Backlog(LARGE).take(0.05) is None
    assert 0.05 <= time.monotonic() - started < 5


def test_take_returns_when_another_thread_puts(spooled: Backlog) -> None:
    threading.Timer(0.05, spooled.put, [block(1)]).start()
    assert names(spooled.take(30)) == [1]


def test_wake_and_close_end_a_take() -> None:
    backlog = Backlog(LARGE)
    started = time.monotonic()
    for end in (backlog.wake, backlog.close):
        threading.Timer(0.05, end).start()
        assert backlog.take(30) is None
    assert time.monotonic() - started < 15


def test_wake_is_not_missed_before_a_take_and_holds_for_one() -> None:
    backlog = Backlog(LARGE)
    backlog.wake()
    started = time.monotonic()
    assert backlog.take(30) is None
    assert time.monotonic() - started < 15
    assert backlog.take(0.05) is None
    assert time.monotonic() - started >= 0.05
    backlog.put(block(1))
    backlog.wake()
    assert names(backlog.take(0)) == [1]


@pytest.mark.parametrize("memory_bytes", [LARGE, 3 * MESSAGE])
def test_one_thread_takes_while_another_puts(tmp_path: Path, memory_bytes: int) -> None:
    backlog = Backlog(memory_bytes, Spool(tmp_path, LARGE))
    wanted = list(range(1, 301))
    putting = threading.Thread(target=lambda: [backlog.put(block(name)) for name in wanted])
    putting.start()
    received: list[int] = []
    while len(received) < len(wanted):
        taken = backlog.take(30)
        assert taken is not None
        if len(received) % 7 == 3:
            backlog.put_back([taken])
            taken = backlog.take(0)
            assert taken is not None
        received += names(taken)
        backlog.sent(taken)
    putting.join()
    assert received == wanted
    assert files(tmp_path) == 0
    assert backlog.close() == 0


class Run:
    """Puts numbered messages and notes which have arrived, over several backlogs on one directory."""

    def __init__(self, memory_bytes: int, directory: Path | None, limit_bytes: int) -> None:
        self._settings = memory_bytes, directory, limit_bytes
        self.put = NOTHING
        self.lost = NOTHING
        self.arrived: list[int] = []
        self.under_way: list[Block] = []
        self._next = 1
        self.open()

    def open(self) -> None:
        memory_bytes, directory, limit_bytes = self._settings
        self.backlog = Backlog(memory_bytes, Spool(directory, limit_bytes) if directory else None)

    def do(self, what: str, number: int) -> None:
        if what == "put":
            written = block(*range(self._next, self._next + number))
            self._next += number
            self.put = plus(self.put, counted(*written.records.tolist()))
            self.backlog.put(written)
        elif what == "take":
            taken = self.backlog.take(0)
            self.under_way += [taken] if taken is not None else []
        elif what == "sent" and self.under_way:
            first = self.under_way.pop(0)
            self.arrived += names(first)
            self.backlog.sent(first)
        elif what == "put_back":
            self.put_back(number)
        elif what == "reopen":
            self.put_back(number)
            self.reopen()
        self.check()

    def put_back(self, messages: int) -> None:
        """Of the first, so many have arrived."""
        if self.under_way:
            first = self.under_way[0]
            messages = min(messages, len(first))
            self.arrived += first.records[:messages].tolist()
            self.under_way[0] = first.after(messages)
        self.backlog.put_back(self.under_way)
        self.under_way = []

    def reopen(self) -> None:
        before = self.backlog.not_sent.records
        assert self.backlog.close() == self.backlog.not_sent.records - before
        self.lost = plus(self.lost, lost(self.backlog))
        self.open()

    def check(self) -> None:
        waiting = self.backlog.waiting_records
        under_way = sum(int(each.records.sum()) for each in self.under_way)
        not_sent = self.lost[0] + self.backlog.not_sent.records
        assert self.put[0] == sum(self.arrived) + under_way + waiting + not_sent

    def finish(self) -> None:
        self.put_back(0)
        while (taken := self.backlog.take(0)) is not None:
            self.arrived += names(taken)
            self.backlog.sent(taken)
        self.backlog.close()
        self.lost = plus(self.lost, lost(self.backlog))


def plus(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "take", "take", "sent", "put_back", "reopen"]),
        st.integers(1, 4),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    memory_messages=st.integers(0, 12),
    limit_files=st.sampled_from([None, 0, 1, 3, 1000]),
    steps=STEPS,
)
def test_everything_put_arrives_in_order_or_waits_or_is_counted(
    memory_messages: int, limit_files: int | None, steps: Sequence[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = None if limit_files is None else Path(name)
        run = Run(memory_messages * MESSAGE, directory, (limit_files or 0) * ONE_FILE)
        for what, number in steps:
            run.do(what, number)
        run.finish()
        assert run.arrived == sorted(set(run.arrived))
        assert plus(counted(*run.arrived), run.lost) == run.put
        assert files(Path(name)) == 0
