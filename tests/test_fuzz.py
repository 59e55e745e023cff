"""The mutated frames: repeatable, of a length that a wire takes, and of every kind."""

from itertools import islice
from pathlib import Path

import pytest

import fuzz
import oracle

PCAPS = Path(__file__).parent / "pcaps"
COUNT = 20_000


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    return fuzz.corpus_of(PCAPS)


@pytest.fixture(scope="module")
def batch(corpus: list[bytes]) -> list[bytes]:
    return list(fuzz.frames(1, corpus, COUNT))


def test_corpus_has_frames_of_both_versions(corpus):
    assert {fuzz.layout_of(frame)[0] for frame in corpus} == {0, 4, 6}
    assert len(corpus) == len(set(corpus))


def test_same_seed_gives_the_same_frames(corpus, batch):
    assert list(fuzz.frames(1, corpus, COUNT)) == batch


def test_a_shorter_batch_is_the_beginning_of_a_longer_one(corpus, batch):
    assert list(fuzz.frames(1, corpus, 100)) == batch[:100]


def test_another_seed_gives_other_frames(corpus, batch):
    assert list(fuzz.frames(2, corpus, 100)) != batch[:100]


def test_lengths_are_within_bounds(batch):
    assert len(batch) == COUNT
    assert min(map(len, batch)) >= fuzz.SHORTEST
    assert max(map(len, batch)) <= fuzz.LONGEST


def test_corpus_stays_as_it_was(corpus):
    before = list(corpus)
    list(fuzz.frames(3, corpus, 1000))
    assert corpus == before


def test_most_frames_are_damaged_and_some_are_not(corpus, batch):
    untouched = sum(frame in set(corpus) for frame in batch[:3000])
    assert 0 < untouched < 600


def test_parser_takes_some_and_refuses_some(tmp_path, batch):
    fuzz.write_pcap(tmp_path / "batch.pcap", batch)
    taken = sum(1 for _ in oracle.packets_of(tmp_path / "batch.pcap"))
    assert COUNT / 10 < taken < COUNT * 9 / 10


@pytest.mark.parametrize("mutation", fuzz.MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_mutation_changes_a_frame_of_each_kind(corpus, mutation):
    """Each mutation bears every frame, even one that an earlier mutation has cut to nothing."""
    draw = fuzz.Random(4).random
    changed = 0
    for frame in corpus * 20:
        for octets in (frame, frame[:20], b""):
            draft = fuzz.Draft(bytearray(octets), *fuzz.layout_of(frame))
            mutation(draw, draft)
            changed += draft.octets != octets
    assert changed > 0


def test_written_batch_is_read_back(tmp_path, batch):
    fuzz.write_pcap(tmp_path / "batch.pcap", batch[:50])
    read = list(oracle.frames_of(tmp_path / "batch.pcap"))
    assert [frame for _, _, frame in read] == batch[:50]
    assert [after[0] - before[0] for before, after in zip(read, islice(read, 1, None), strict=False)] == [
        fuzz.STEP_NS
    ] * 49
