"""Where the packets of sessions go, one row each. The only code that writes them to disk.

Rules:
- What a sink could not write is the caller's: SinkError, and nothing of the batch was taken. There is no
  table to keep packets in, so no room is asked for beforehand.
- Times in JSON and CSV are integers, nanoseconds since 1970 (UTC): they go into an array as they stand.
"""

from typing import Protocol

import pyarrow as pa


class FeatureSink(Protocol):
    """Takes record batches of features.packets.FEATURES_SCHEMA."""

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Takes rows; `exported_at_ns` is UTC. Raises SinkError, nothing written."""

    def finish(self) -> None:
        """No more rows come: writes what was gathered. Raises SinkError."""

    def close(self) -> None:
        """Gives back what was opened; what was gathered and not finished is gone."""
