"""The spool: blocks come back as they were, in order, from a directory that has one user and a limit."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flowmon.errors import SinkError
from flowmon.ipfix.block import Block
from flowmon.sinks import spool as spool_module
from flowmon.sinks.spool import Lost, Spool, SpooledBlock, totals

LARGE = 1 << 40
TEMPLATES = {256: b"\x01\x00\x00\x01\x00\x08\x00\x04", 300: b""}


def block(*names: int) -> Block:
    """A message for each name, which is in its content and its counts."""
    contents = [f"<{name}>".encode() * (1 + name % 3) for name in names]
    counts = np.array(names, np.int64)
    return Block(
        content=np.frombuffer(b"".join(contents), np.uint8).copy(),
        ends=np.cumsum([len(content) for content in contents]),
        records=counts,
        packets=counts * 10,
        octets=counts * 1000,
        templates=TEMPLATES,
    )


def same(one: object, other: Block) -> bool:
    """Whether each array and the templates are equal."""
    fields = ("content", "ends", "records", "packets", "octets")
    return (
        isinstance(one, Block)
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)
        and all(getattr(one, name).dtype == getattr(other, name).dtype for name in fields)
        and one.templates == other.templates
    )


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.arrow"))


def read_all(spool: Spool) -> list[list[int]]:
    """The names in each block that waits."""
    found = []
    while (oldest := spool.read_oldest()) is not None:
        assert isinstance(oldest, SpooledBlock)
        found.append(oldest.records.tolist())
    return found


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Spool]]:
    """Opens a spool on the test's directory, in place of the one before."""
    made: list[Spool] = []

    def open_spool(limit_bytes: int = LARGE) -> Spool:
        if made:
            made[-1].close()
        made.append(Spool(tmp_path, limit_bytes))
        return made[-1]

    yield open_spool
    made[-1].close()


def test_block_comes_back_as_it_was(make: Callable[..., Spool]) -> None:
    written = block(1, 2, 3, 4)
    spool = make()
    assert spool.append(written) == []
    assert same(spool.read_oldest(), written)
    assert spool.read_oldest() is None


def test_what_is_left_of_a_block_can_be_written(make: Callable[..., Spool]) -> None:
    rear = block(1, 2, 3, 4).after(2)
    spool = make()
    spool.append(rear)
    assert same(spool.read_oldest(), rear)


def test_arrays_that_come_back_can_be_written_to(make: Callable[..., Spool]) -> None:
    spool = make()
    spool.append(block(1))
    read = spool.read_oldest()
    assert isinstance(read, SpooledBlock)
    read.content[0] = 7
    assert read.content[0] == 7


def test_order_with_blocks_in_front_and_behind_and_in_the_next_process(make: Callable[..., Spool]) -> None:
    spool = make()
    spool.append(block(3))
    spool.append(block(4))
    assert spool.prepend(block(2))
    assert spool.prepend(block(1))
    spool.append(block(5))
    assert read_all(spool) == [[1], [2], [3], [4], [5]]
    assert read_all(make()) == [[1], [2], [3], [4], [5]]


def test_index_is_that_of_the_files_in_the_next_process_too(
    make: Callable[..., Spool], tmp_path: Path
) -> None:
    spool = make()
    spool.append(block(5, 6))
    spool.append(block(7))
    for each in (spool, make()):
        assert (each.waiting, each.waiting_records) == (2, 18)
        assert each.waiting_bytes == sum(path.stat().st_size for path in files(tmp_path))


def test_file_stays_until_its_block_is_removed(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()
    spool.append(block(1, 2))
    read = spool.read_oldest()
    assert isinstance(read, SpooledBlock)
    assert len(files(tmp_path)) == 1
    assert not spool.empty
    spool.remove(read.after(1))
    assert files(tmp_path) == []
    assert spool.empty
    assert make().read_oldest() is None


def test_what_is_left_replaces_the_file(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()
    spool.append(block(1, 2, 3))
    spool.append(block(4))
    read = spool.read_oldest()
    assert isinstance(read, SpooledBlock)
    assert spool.prepend(read.after(2))
    assert spool.waiting_bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert read_all(spool) == [[3], [4]]
    assert read_all(make()) == [[3], [4]]


def test_whole_block_goes_back_without_a_write(
    make: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make()
    spool.append(block(1, 2, 3))
    read = spool.read_oldest()
    assert isinstance(read, SpooledBlock)
    monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("a file was written"))
    assert spool.prepend(read)
    assert read_all(spool) == [[1, 2, 3]]


def test_full_disk_leaves_the_longer_file(
    make: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make()
    spool.append(block(1, 2))
    read = spool.read_oldest()
    assert isinstance(read, SpooledBlock)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        assert spool.prepend(read.after(1))
    assert "No space left on device" in caplog.text
    assert spool.waiting_records == 3
    assert read_all(spool) == [[1, 2]]


def full_disk(fd: int) -> None:
    raise OSError(28, "No space left on device")


def size_of(make: Callable[..., Spool], written: Block) -> int:
    """Its file's, which is removed again."""
    spool = make()
    spool.append(written)
    size = spool.waiting_bytes
    read = spool.read_oldest()
    assert isinstance(read, Block)
    spool.remove(read)
    return size


def test_limit_forces_out_the_oldest_and_says_what_is_lost(
    make: Callable[..., Spool], tmp_path: Path
) -> None:
    size = size_of(make, block(10))
    spool = make(3 * size)
    lost = [spool.append(block(name)) for name in (10, 13, 16, 19, 22)]
    assert lost == [[], [], [], [Lost(10, 100, 10_000)], [Lost(13, 130, 13_000)]]
    assert sum(path.stat().st_size for path in files(tmp_path)) == 3 * size
    assert read_all(spool) == [[16], [19], [22]]


def test_limit_keeps_the_newest_even_if_it_alone_exceeds_it(make: Callable[..., Spool]) -> None:
    spool = make(1)
    assert spool.append(block(1)) == []
    assert spool.append(block(2)) == [totals(block(1))]
    assert read_all(spool) == [[2]]


def test_file_that_was_read_goes_first_and_nothing_is_lost(make: Callable[..., Spool]) -> None:
    size = size_of(make, block(10))
    spool = make(2 * size)
    spool.append(block(10))
    read = spool.read_oldest()
    assert isinstance(read, SpooledBlock)
    spool.append(block(13))
    assert spool.holds(read)
    assert spool.append(block(16)) == []
    assert not spool.holds(read)
    spool.remove(read)
    assert read_all(make(2 * size)) == [[13], [16]]


def test_of_the_files_that_were_read_the_oldest_goes_first(make: Callable[..., Spool]) -> None:
    size = size_of(make, block(10))
    spool = make(2 * size)
    spool.append(block(10))
    spool.append(block(13))
    first, second = spool.read_oldest(), spool.read_oldest()
    assert isinstance(first, SpooledBlock)
    assert isinstance(second, SpooledBlock)
    spool.append(block(16))
    assert (spool.holds(first), spool.holds(second)) == (False, True)


def test_room_that_a_shorter_file_leaves_is_used(make: Callable[..., Spool]) -> None:
    long = block(*range(10, 200))
    size = size_of(make, long)
    spool = make(size + size // 2)
    spool.append(long)
    read = spool.read_oldest()
    assert isinstance(read, SpooledBlock)
    assert spool.prepend(read.after(189))
    assert spool.append(block(13)) == []
    assert spool.append(block(*range(10, 100))) == []
    assert [len(found) for found in read_all(spool)] == [1, 1, 90]


def test_room_that_a_broken_file_leaves_is_used(make: Callable[..., Spool], tmp_path: Path) -> None:
    size = size_of(make, block(10))
    spool = make(2 * size)
    spool.append(block(10))
    files(tmp_path)[0].write_bytes(b"")
    assert spool.read_oldest() == totals(block(10))
    assert spool.append(block(13)) == spool.append(block(16)) == []


def test_empty_spool_takes_a_block_in_front_whatever_the_limit(make: Callable[..., Spool]) -> None:
    spool = make(1)
    assert spool.prepend(block(1))
    assert read_all(spool) == [[1]]


def test_no_room_in_front(make: Callable[..., Spool]) -> None:
    size = size_of(make, block(10))
    spool = make(2 * size)
    spool.append(block(16))
    assert spool.prepend(block(13))
    assert not spool.prepend(block(10))
    assert read_all(spool) == [[13], [16]]


def test_limit_that_is_lower_than_what_is_there(make: Callable[..., Spool]) -> None:
    size = size_of(make, block(10))
    spool = make()
    for name in (10, 13, 16):
        spool.append(block(name))
    assert make(2 * size).append(block(19)) == [totals(block(10)), totals(block(13))]


def test_full_disk_leaves_no_trace(
    make: Callable[..., Spool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = make()
    spool.append(block(1))
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        for write in (spool.append, spool.prepend):
            with pytest.raises(OSError, match="No space left"):
                write(block(2))
    assert sorted(tmp_path.iterdir()) == before
    spool.append(block(3))
    assert read_all(spool) == [[1], [3]]


def test_half_written_file_is_removed(make: Callable[..., Spool], tmp_path: Path) -> None:
    make().append(block(1))
    (tmp_path / ".block.tmp").write_bytes(b"ARROW1")
    assert read_all(make()) == [[1]]
    assert not (tmp_path / ".block.tmp").exists()


def of_another_version(path: Path) -> bytes:
    with pa.ipc.open_file(path) as reader:
        table = reader.read_all()
    metadata = table.schema.metadata[spool_module.METADATA].replace(b'"version": 1', b'"version": 2')
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({spool_module.METADATA: metadata})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "breaking",
    [lambda path: path.read_bytes()[:-20], lambda path: b"", lambda path: b"x" * 5000, of_another_version],
    ids=["cut off", "empty", "not ours", "other version"],
)
def test_broken_file_is_set_aside(
    make: Callable[..., Spool],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    breaking: Callable[[Path], bytes],
) -> None:
    spool = make()
    for name in (1, 2, 3):
        spool.append(block(name))
    broken = files(tmp_path)[1]
    broken.write_bytes(breaking(broken))
    spool = make()
    assert spool.waiting_records == 4
    assert read_all(spool) == [[1], [3]]
    assert [path.name for path in tmp_path.glob("*.broken")] == [broken.name + ".broken"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"{broken} cannot be read back and is set aside as {broken.name}.broken (")


def test_file_that_breaks_later_is_lost(make: Callable[..., Spool], tmp_path: Path) -> None:
    spool = make()
    spool.append(block(1))
    spool.append(block(2))
    files(tmp_path)[0].write_bytes(b"")
    assert spool.read_oldest() == Lost(1, 10, 1000)
    assert read_all(spool) == [[2]]
    assert len(list(tmp_path.glob("*.broken"))) == 1


def test_name_of_a_broken_file_is_not_used_again(make: Callable[..., Spool], tmp_path: Path) -> None:
    for _ in range(2):
        make().append(block(1))
        files(tmp_path)[0].write_bytes(b"")
    assert make().empty
    assert len(list(tmp_path.glob("*.broken"))) == 2


def test_no_byte_that_is_changed_makes_it_raise(make: Callable[..., Spool], tmp_path: Path) -> None:
    written = block(1, 2, 3)
    make().append(written)
    (path,) = files(tmp_path)
    content = path.read_bytes()
    outcomes = set()
    for place in range(0, len(content), 3):
        for broken in tmp_path.glob("*.broken"):
            broken.unlink()
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        read = make().read_oldest()
        outcomes.add(type(read))
        if isinstance(read, SpooledBlock):
            assert totals(read) == totals(written)
            assert np.all(np.diff(read.ends, prepend=0) >= 0)
            assert read.ends[-1] == len(read.content)
    assert outcomes <= {SpooledBlock, Lost, type(None)}
    assert {SpooledBlock, type(None)} <= outcomes


def test_foreign_files_are_left_alone(make: Callable[..., Spool], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "table.arrow").write_text("mine")
    assert make().read_oldest() is None
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "table.arrow").read_text() == "mine"


def test_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a" / "b", LARGE)
    spool.append(block(1))
    assert read_all(spool) == [[1]]
    spool.close()


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError) as error:
        Spool(tmp_path / "file" / "spool", LARGE)
    assert str(error.value) == (
        f"{tmp_path}/file/spool cannot be written (Not a directory): give another directory (--ipfix-spool)"
    )


def test_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(SinkError) as error:
            Spool(tmp_path, LARGE)
    assert str(error.value) == (
        f"{tmp_path} cannot be written (No space left on device): give another directory (--ipfix-spool)"
    )
    Spool(tmp_path, LARGE).close()  # the lock was not kept


def test_second_process_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    opening = "import sys, pathlib, flowmon.sinks.spool as s; s.Spool(pathlib.Path(sys.argv[1]), 9)"
    command = [sys.executable, "-c", opening, str(tmp_path)]
    spool = Spool(tmp_path, LARGE)
    spool.append(block(1))
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        f"flowmon.errors.SinkError: {tmp_path} is used by another flowmon: "
        "give each its own directory (--ipfix-spool)"
    )
    assert read_all(spool) == [[1]]
    spool.close()
    assert subprocess.run(command, check=False).returncode == 0
