"""Data messages on their way out, complete but for what is known only when they are sent."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Block:
    """Whole messages, one after the other; what their headers say of the session is still 0.

    content: uint8[n]. ends: int64[m], where each message ends in it. records,
    packets, octets: int64[m], data records of each message, and the packets and
    IP octets of their flows. templates: the template records that the messages
    need, by their identifiers.
    """

    content: Array
    ends: Array
    records: Array
    packets: Array
    octets: Array
    templates: dict[int, bytes]

    def __len__(self) -> int:
        return len(self.ends)

    def joined(self, other: "Block") -> "Block":
        """This one and then the other."""
        return Block(
            np.concatenate([self.content, other.content]),
            np.concatenate([self.ends, other.ends + len(self.content)]),
            np.concatenate([self.records, other.records]),
            np.concatenate([self.packets, other.packets]),
            np.concatenate([self.octets, other.octets]),
            self.templates | other.templates,
        )

    def after(self, messages: int) -> "Block":
        """The block without its first `messages`."""
        cut = int(self.ends[messages - 1]) if messages else 0
        return replace(
            self,
            content=self.content[cut:],
            ends=self.ends[messages:] - cut,
            records=self.records[messages:],
            packets=self.packets[messages:],
            octets=self.octets[messages:],
        )
