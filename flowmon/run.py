"""One run of the collector, from its start to the last flow."""

import logging
import os
from pathlib import Path

from flowmon import session
from flowmon.collector import Collector, CollectorOptions
from flowmon.errors import KernelError, NotSentError, SinkError
from flowmon.kernel.flow_table import FlowTable
from flowmon.kernel.pins import PinSet
from flowmon.session import Where, Work
from flowmon.sinks import Sink
from flowmon.stop import Stop

log = logging.getLogger("flowmon")


def run(
    pin_set: PinSet,
    where: Where,
    work: Work | None,
    sinks: list[Sink],
    options: CollectorOptions,
    pid_file: Path | None,
) -> None:
    """Collects until it is stopped, undoes this run's `work`, and takes the last flows.

    All of them if the table is this run's. A collector without work of its own
    leaves attached what it attaches to on behalf of an earlier load. Raises
    SinkError where flows could not be written, KernelError where the table went.
    """
    stop = Stop()
    table = FlowTable(pin_set)
    owns_table = work is not None and work.loaded
    follower = session.Follower(pin_set, where, work.attached if work else [])
    collector = Collector(table, sinks, options, follower.names, interface_descriptions=follower.descriptions)
    if pid_file is not None:
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        pid_file.write_text(f"{os.getpid()}\n")
    log.info("collecting from %s", pin_set.table_path)
    try:
        if options.interval_s > 0:
            collector.run(lambda: stop.requested or not session.is_pinned(pin_set, table.id), follower.wait)
        if not session.is_pinned(pin_set, table.id):
            raise KernelError(f"{pin_set.table_path} was removed by somebody else: this collector has ended")
        if work:
            session.detach(pin_set, work)
        collector.collect(everything=owns_table)
        _report_the_end(pin_set, collector, collector.finish(), owns_table=owns_table)
    finally:
        if pid_file is not None:
            pid_file.unlink(missing_ok=True)
        for sink in sinks:
            sink.close()
        follower.close()
        table.close()


def _report_the_end(
    pin_set: PinSet, collector: Collector, complaints: list[str], *, owns_table: bool
) -> None:
    tally = collector.tally
    log.info("%d records of %d packets", tally.records, tally.packets)
    if tally.duplicate_packets:
        log.info("%d packets were seen at other points (interface and hook) as well", tally.duplicate_packets)
    if collector.unwritten_records:
        complaints.append(
            f"{collector.unwritten_records} records could not be written and are lost: {collector.refused_by}"
        )
    stays = owns_table and bool(collector.refused_by)
    if stays and not collector.unwritten_records:
        complaints.append(
            f"{collector.refused_by}; the last flows stay in {pin_set.table_path}:"
            f" collect them with `flowmon -f {pin_set.table_path} -i 0 --idle-timeout 0 -d DIR`, then `flowmon purge`"
        )
    if complaints:
        raise (SinkError if stays else NotSentError)("; ".join(complaints))
