"""The verdicts of any walk of packets, passes, evictions and ends against the oracle's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activity_oracle import (
    Oracle,
)
from activity_scenes import (
    DEFAULT,
    FA,
    OFFSET_NS,
    PA,
    RA,
    SA,
    TALKS,
    WalkScene,
    flow_id_of,
)
from flowmon.analysers.activity import (
    ACK,
    ACTIVITY,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
    Tracker,
)
from flowmon.expiry import Timeouts
from samples import NS

FLAGS = st.sampled_from([0, SYN, SYN, SA, SA, ACK, ACK, PA, FA, RST, RA, FIN, FIN | PSH | URG, FIN | 0xC0])
NAMES = st.one_of(st.sampled_from(["http", "http", "dns"]), st.sampled_from(sorted(TALKS)))
PACKET = st.tuples(st.just("packet"), NAMES, st.booleans(), FLAGS, st.integers(1, 3))
EVICT = st.tuples(st.just("evict"), NAMES, st.booleans(), st.just(0), st.just(0))
WAITS = st.sampled_from([0.01, 0.3, 0.5, 1.0, 3.0, 10.0, 16.0, 31.0])
NOW_AND_THEN = st.sampled_from([False] * 9 + [True])


@dataclass(frozen=True)
class Round:
    """What happens up to a look, and during it."""

    packets: list[tuple[Any, ...]]
    evictions: list[tuple[Any, ...]]
    wait: float
    excess: int
    meanwhile: list[tuple[Any, ...]]
    restarts: bool


ROUNDS = st.lists(
    st.builds(
        Round,
        st.lists(PACKET, min_size=1, max_size=6),
        st.one_of(st.just([]), st.just([]), st.lists(EVICT, max_size=2)),
        WAITS,
        st.sampled_from([0, 0, 0, 2]),
        st.one_of(st.just([]), st.lists(st.one_of(PACKET, EVICT), max_size=2)),
        NOW_AND_THEN,
    ),
    min_size=4,
    max_size=9,
)


@settings(max_examples=150, deadline=None)
@given(ROUNDS, st.sampled_from([DEFAULT, Timeouts(20 * NS, 5 * NS, 0), Timeouts(2 * NS, 60 * NS, 4 * NS)]))
def test_every_pass_tells_what_the_rules_say(rounds: list[Round], timeouts: Timeouts) -> None:
    scene, oracle = WalkScene(timeouts), Oracle()
    for one in rounds:
        if one.restarts:
            scene.watcher.tracker, oracle = Tracker(), Oracle()
        for step in (*one.packets, *one.evictions):
            scene.do(*step)
        scene.now += one.wait
        look_and_compare(scene, oracle, one)


def look_and_compare(scene: WalkScene, oracle: Oracle, one: Round) -> None:
    scene.meanwhile, read_at = one.meanwhile, scene.now
    activity = scene.look(excess=one.excess)
    scene.now, now = read_at, scene.now
    assert activity.at_ns == scene.now_mono_ns() + OFFSET_NS
    expected = sorted(oracle.told(scene).values(), key=lambda row: row["flow_id"])
    assert [as_dict(row) for row in activity.rows] == expected
    assert activity.seconds == pytest.approx(oracle.seconds(scene.now_mono_ns()), abs=1e-9)
    scene.now = now


def as_dict(row: Any) -> dict[str, Any]:
    values = {name: row[name].tolist() for name in ACTIVITY.names or ()}
    return {name: bytes(value) if isinstance(value, list) else value for name, value in values.items()}


# --- conservation ---


@settings(max_examples=60, deadline=None)
@given(ROUNDS, st.integers())
def test_what_is_new_adds_up_to_all_however_often_one_looks(rounds: list[Round], looks: int) -> None:
    scene, sent = WalkScene(DEFAULT), Counter[tuple[int, bytes]]()
    for number, one in enumerate(rounds):
        for step in one.packets:
            scene.do(*step)
            _, name, is_answer, _, packets = step
            sender = TALKS[name]["destination_address" if is_answer else "source_address"][0]
            sent[flow_id_of(TALKS[name]), bytes(sender.tolist())] += packets
        scene.now += one.wait
        if looks >> number & 1:
            scene.look(excess=one.excess)
    scene.look(everything=True)
    found = Counter[tuple[int, bytes]]()
    for row in np.concatenate([one.rows for one in scene.watcher.activities]):
        for address, new in (("source", "forward"), ("destination", "reverse")):
            sender = bytes(row[f"{address}_address"].tolist())
            found[int(row["flow_id"]), sender] += int(row[f"new_{new}_packets"])
    assert found == sent
