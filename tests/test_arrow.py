"""Between NumPy and Arrow: the values are the same, and pandas stays out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowmon.arrow import from_numpy, strings, to_numpy

DTYPES = ("u1", "u2", "u4", "u8", "i4", "i8", "f8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_the_same_both_ways(dtype: str) -> None:
    for values in (np.arange(7).astype(dtype), np.arange(14).astype(dtype)[::2], np.zeros(0, dtype)):
        column = from_numpy(values)
        assert column.to_pylist() == values.tolist()
        assert column.type == pa.from_numpy_dtype(np.dtype(dtype))
        assert to_numpy(column).tolist() == values.tolist()
        assert to_numpy(column[2:5]).tolist() == values[2:5].tolist()


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40), st.integers(0, 40))
def test_booleans_are_the_same(values: list[bool], start: int, length: int) -> None:
    column = pa.array(values, pa.bool_()).slice(min(start, len(values)), length)
    found = to_numpy(column)
    assert (found.dtype, found.tolist()) == (np.dtype(bool), column.to_pylist())


@given(st.lists(st.text(max_size=5), max_size=9))
def test_texts_are_the_same(texts: list[str]) -> None:
    assert strings(texts).to_pylist() == texts


def test_no_record_needs_pandas(tmp_path: Path) -> None:
    """It would take the first pass a third of a second, and 40 MB."""
    script = (
        "import sys, tempfile; from pathlib import Path; import numpy as np; from flowmon import abi;"
        "from flowmon.records import Context, EndedFlows, record_batch;"
        "from flowmon.sinks.parquet import ParquetSink;"
        "keys, counters = np.zeros(9, abi.FLOW_KEY), np.ones(9, abi.FLOW_COUNTERS);"
        "flows = EndedFlows(keys, counters, counters, np.zeros(9, 'u8'), np.ones(9, 'u1'));"
        "sink = ParquetSink(Path(tempfile.mkdtemp(dir=sys.argv[1])));"
        "sink.write(record_batch(flows, Context(0, {0: 'eth0'}, 0)), 10**18);"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == 0


def test_pandas_is_left_out() -> None:
    """Not even what pyarrow does by itself imports it, as where an alert is made. Who wants it can import it all the same."""
    script = (
        "import sys, pyarrow as pa, pyarrow.compute as pc; from flowmon.arrow import leave_pandas_out;"
        "from flowmon.analysers.alerts import Alert, alert_batch;"
        "leave_pandas_out();"
        "alert_batch([Alert(detector='d', kind='k', start_ns=0, end_ns=0, example_ports=(1,))]);"
        "pa.array(range(3)).to_numpy(); pc.sum(pa.array([1]));"
        "assert 'pandas' not in sys.modules;"
        "import pandas"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
