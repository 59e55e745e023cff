"""Packets as Parquet files, in the same partitions as flows."""

from pathlib import Path

import pyarrow as pa

from flowmon.features.packets import FEATURES_SCHEMA
from flowmon.sinks.features.directory import OPTION
from flowmon.sinks.parquet import PartitionedFiles

# Columns that hardly two packets have the same value of. Those that name the session repeat, as its packets do.
HARDLY_REPEATED = {
    "observationTimeNanoseconds",
    "interArrivalNanoseconds",
    "tcpRelativeSequenceNumber",
    "tcpRelativeAcknowledgementNumber",
}


class ParquetFeatureSink:
    """Writes one file `features-….parquet` a batch under `directory`, which is made where it is not there."""

    def __init__(self, directory: Path, option: str = OPTION) -> None:
        """option: how the user gives another directory. Raises SinkError."""
        repeated = [name for name in FEATURES_SCHEMA.names if name not in HARDLY_REPEATED]
        self._files = PartitionedFiles(directory, "features", option, repeated)

    def write(self, batch: pa.RecordBatch, exported_at_ns: int) -> None:
        """Writes one file; an empty batch makes none. Raises SinkError, nothing written."""
        if batch.num_rows:
            # The file grows as it is written: room for flow records would be several times too much.
            self._files.reserve(0)
            self._files.write(batch, exported_at_ns)

    def finish(self) -> None:
        """Each write was whole."""

    def close(self) -> None:
        """Removes the temporary file, if there is one."""
        self._files.close()
