"""One run of the collector, from its start to the last flow."""

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flowmon import session
from flowmon.blocker import Blocker
from flowmon.collector import Collector, CollectorOptions
from flowmon.errors import ConfigError, KernelError, NotSentError, SinkError
from flowmon.features.tap import FeatureTap
from flowmon.kernel import loader
from flowmon.kernel.clock import SystemClock
from flowmon.kernel.feature_source import FeatureSource
from flowmon.kernel.flow_table import FLOW_STATE, WATCHED_STATE, FlowTable
from flowmon.kernel.pins import PinSet
from flowmon.outputs import FeatureOutput, Watching
from flowmon.publisher import Publisher, interface_packets
from flowmon.session import Where, Work
from flowmon.sinks import Metering, Sink
from flowmon.stop import Stop
from flowmon.web import health
from flowmon.web.pages import Pages
from flowmon.web.server import Server

log = logging.getLogger("flowmon")


@dataclass(frozen=True)
class Outputs:
    """Where all goes that a run finds out. features: opened where the programs capture them."""

    sinks: list[Sink]
    features: FeatureOutput


def run(
    pin_set: PinSet,
    where: Where,
    work: Work | None,
    outputs: Outputs,
    watching: Watching,
    options: CollectorOptions,
    pid_file: Path | None,
) -> None:
    """Collects until it is stopped, undoes this run's `work`, and takes the last flows.

    All of them if the table is this run's. A collector without work of its own
    leaves attached what it attaches to on behalf of an earlier load. Raises
    SinkError where flows could not be written, KernelError where the table went.
    """
    stop = Stop()
    owns_table = work is not None and work.loaded
    with ExitStack() as stack:
        tap = _tap(stack, pin_set, outputs.features, options)
        table, follower, collector = _parts(stack, pin_set, where, work, outputs, watching, options, tap)
        if pid_file is not None:
            pid_file.parent.mkdir(parents=True, exist_ok=True)
            pid_file.write_text(f"{os.getpid()}\n")
            stack.callback(pid_file.unlink, missing_ok=True)
        log.info("collecting from %s", pin_set.table_path)
        if options.interval_s > 0:
            collector.run(
                lambda: stop.requested or not session.is_pinned(pin_set, table.id),
                follower.wait,
                tap.tend if tap else lambda: None,
            )
        if not session.is_pinned(pin_set, table.id):
            if tap is not None:  # what it has is its own
                tap.finish()
                tap.report()
            raise KernelError(f"{pin_set.table_path} was removed by somebody else: this collector has ended")
        if work:
            session.detach(pin_set, work)
        collector.collect(everything=owns_table)
        complaints = collector.finish()
        if tap is not None:
            complaints += tap.finish()
            tap.report()
        _report_the_end(pin_set, collector, complaints, owns_table=owns_table)


def _parts(
    stack: ExitStack,
    pin_set: PinSet,
    where: Where,
    work: Work | None,
    outputs: Outputs,
    watching: Watching,
    options: CollectorOptions,
    tap: FeatureTap | None,
) -> tuple[FlowTable, session.Follower, Collector]:
    """What a run needs, opened; the stack closes it."""
    sinks = outputs.sinks
    for sink in sinks:
        stack.callback(sink.close)
    stack.callback(outputs.features.close)
    stack.callback(watching.close)
    state = WATCHED_STATE if watching.analysers else FLOW_STATE
    table = FlowTable(pin_set, state, first_packets=loader.loaded_options(pin_set).first_packets)
    stack.callback(table.close)
    follower = session.Follower(pin_set, where, work.attached if work else [])
    stack.callback(follower.close)
    blocker = Blocker(pin_set, watching.block)
    stack.callback(blocker.close)
    watch = watching.watch(options.interval_s, blocker.respond)
    publisher = Publisher(pin_set, table, sinks, watch, follower.names, tap.books if tap else lambda: None)

    def publish(metering: Metering) -> None:
        blocker.tick()
        publisher.post(metering, collector)

    collector = Collector(
        table,
        sinks,
        options,
        follower.names,
        interface_descriptions=follower.descriptions,
        watch=watch,
        publish=publish,
    )
    server = _server(pin_set, watching, publisher, options) if options.interval_s > 0 else None
    if server is not None:
        stack.callback(server.close)
    return table, follower, collector


def _tap(
    stack: ExitStack, pin_set: PinSet, output: FeatureOutput, options: CollectorOptions
) -> FeatureTap | None:
    """Where the programs capture packets one by one, and there is a place for them."""
    if loader.loaded_options(pin_set).features is None:
        return None
    try:
        sinks = output.open()
    except ConfigError as error:
        log.warning("%s; those that are captured go nowhere", error)
        return None
    tap = FeatureTap(FeatureSource(pin_set), sinks, output.tap_options(options), SystemClock())
    stack.callback(tap.close)
    return tap


def _server(
    pin_set: PinSet, watching: Watching, publisher: Publisher, options: CollectorOptions
) -> Server | None:
    """HTTP, begun. The default address may be somebody else's: then there is none, and that is said."""
    if watching.listen is None:
        return None
    look = health.Watch(publisher.board, options.interval_s, lambda: interface_packets(pin_set))
    pages = Pages(publisher.board, look, serve_ip_list=watching.serve_ip_list)
    try:
        server = Server(*watching.listen, pages)
    except ConfigError as error:
        if watching.is_listening_asked:
            raise
        log.warning("%s; nothing is served over HTTP", error)
        return None
    server.start()
    log.info("serving %s/metrics", server.url)
    return server


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
