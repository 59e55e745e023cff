"""What flowmon.biflow.pair must answer, slowly and in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NONE = -1

Side = tuple[bytes, int]


@dataclass
class Conversation:
    """`entries`: rows of all points and both directions. `pairs`: each (forward, reverse) that the rules
    allow; more than one only where entries were born at the same time.
    """

    entries: set[int] = field(default_factory=set)
    pairs: set[tuple[int, int]] = field(default_factory=set)


def conversations(keys: np.ndarray, born: np.ndarray, *, every_interface: bool) -> dict[Any, Conversation]:
    """By what the entries of a conversation share."""
    directions: dict[Any, dict[tuple[Side, Side], list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, key in enumerate(keys):
        ports = (int(key["source_port"]), int(key["destination_port"]))
        # ICMP's are the identifier and the message class, of both directions alike.
        own, of_both = ((0, 0), ports) if key["protocol"] in {1, 58} else (ports, (0, 0))
        source = (key["source_address"].tobytes(), own[0])
        destination = (key["destination_address"].tobytes(), own[1])
        shared = (
            frozenset((source, destination)),
            of_both,
            *(
                int(key[name])
                for name in ("vlan_id", "customer_vlan_id", "in_tunnel", "protocol", "ip_version")
            ),
            *([int(key["ifindex"])] if every_interface else []),
        )
        directions[shared][source, destination].append(row)
    return {
        shared: Conversation(set().union(*both.values()), set(_pairs(list(both.values()), born)))
        for shared, both in directions.items()
    }


def _pairs(directions: list[list[int]], born: np.ndarray) -> Iterator[tuple[int, int]]:
    """(forward, reverse): of each direction the first born, and of these two the first born first."""
    reporters = [
        [row for row in rows if born[row] == min(born[other] for other in rows)] for rows in directions
    ]
    if len(reporters) == 1:
        yield from ((row, NONE) for row in reporters[0])
        return
    for one in reporters[0]:
        for other in reporters[1]:
            if born[one] <= born[other]:
                yield one, other
            if born[other] <= born[one]:
                yield other, one
