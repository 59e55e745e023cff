"""What `flowmon status` says: where the programs are, how full the table is, the books."""

import os
from dataclasses import asdict
from typing import Any

from flowmon import abi, daemon
from flowmon.kernel import loader
from flowmon.kernel.feature_source import FeatureSource
from flowmon.kernel.flow_table import Books, FlowTable
from flowmon.kernel.pins import PinSet
from flowmon.session import attached_interfaces


def status(pin_set: PinSet) -> dict[str, Any]:
    """Plain values, as `--json` prints them. Raises KernelError where nothing is loaded."""
    loader.require_root()
    table = FlowTable(pin_set)
    try:
        books = table.books()
    finally:
        table.close()
    info = loader.read_loaded_info(pin_set)[0]
    options = loader.loaded_options(pin_set)
    return {
        "table": str(pin_set.table_path),
        "loaded": pin_set.has_programs(),
        "loader": abi.Loader(int(info["loader"])).name.lower(),
        "follows_new_interfaces": bool(info["follow_directions"]),
        "collector_pid": daemon.running(pin_set),
        "interfaces": [
            {
                "name": interface.name,
                "ifindex": interface.index,
                "directions": [direction.name.lower() for direction in hooks],
            }
            for interface, hooks in attached_interfaces(pin_set)
        ],
        "deny_list": options.deny,
        "guard_ports": options.guard.ports if options.guard else 0,
        "features": _features(pin_set) if options.features else None,
        "max_flows": table.max_flows,
        "table_bytes": loader.table_bytes(pin_set),
        "books": books_as_dict(books),
    }


def _features(pin_set: PinSet) -> dict[str, int]:
    """What became of the packets that are captured one by one."""
    source = FeatureSource(pin_set)
    try:
        return asdict(source.books())
    finally:
        source.close()


def books_as_dict(books: Books) -> dict[str, Any]:
    """The books with what follows from them."""
    return asdict(books) | {
        "evicted_flows": books.evicted_flows,
        "evicted_packets": books.evicted_packets,
        "evicted_octets": books.evicted_octets,
    }


def print_status(found: dict[str, Any]) -> None:
    """The same as tables for people."""
    from rich.console import Console
    from rich.table import Table

    width = None if os.isatty(1) else 100
    console = Console(width=width, highlight=False)
    books = found["books"]
    resident = books["resident_flows"]
    collector = f"process {found['collector_pid']}" if found["collector_pid"] else "none in the background"
    console.print(f"table      {found['table']}")
    console.print(
        f"occupancy  {resident:,} of {found['max_flows']:,} directed flows"
        f" ({100 * resident / found['max_flows']:.1f}%), {found['table_bytes'] / 1e6:.1f} MB"
    )
    console.print(f"programs   {'loaded by ' + found['loader'] if found['loaded'] else 'not loaded'}")
    console.print(f"collector  {collector}")
    following = " and those that appear" if found["follows_new_interfaces"] else ""
    names = [f"{i['name']} ({'+'.join(i['directions'])})" for i in found["interfaces"]]
    console.print(f"attached   {', '.join(names) or 'nowhere'}{following}")
    guard = f"guard above {found['guard_ports']} ports" if found["guard_ports"] else ""
    blocking = ", ".join(filter(None, ("deny-list" if found["deny_list"] else "", guard)))
    console.print(f"blocking   {blocking or 'off'}{' (flowmon blocked)' if blocking else ''}")
    if found["features"]:
        parts = (f"{number:,} {name.removesuffix('_packets')}" for name, number in found["features"].items())
        console.print(f"features   packets: {', '.join(parts)}")
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("the books")
    for unit in ("packets", "L2 octets", "directed flows"):
        table.add_column(unit, justify="right")
    for row in _book_rows(books):
        table.add_row(*row)
    console.print(table)


def _book_rows(books: dict[str, Any]) -> list[tuple[str, ...]]:
    def row(label: str, *values: int | None) -> tuple[str, ...]:
        return (label, *("" if value is None else f"{value:,}" for value in values))

    rows = [
        row("seen", books["seen_packets"], books["seen_octets"], None),
        row("= counted", books["counted_packets"], books["counted_octets"], books["flows_inserted"]),
    ]
    for reason, packets in books["ignored_packets"].items():
        if packets:
            label = f"+ ignored: {reason.replace('_', ' ')}"
            rows.append(row(label, packets, books["ignored_octets"][reason], None))
    rows += [
        row("counted", books["counted_packets"], books["counted_octets"], books["flows_inserted"]),
        row("= taken", books["taken_packets"], books["taken_octets"], books["taken_flows"]),
        row("+ in the table", books["resident_packets"], books["resident_octets"], books["resident_flows"]),
        row("+ evicted (lost)", books["evicted_packets"], books["evicted_octets"], books["evicted_flows"]),
    ]
    if books["late_packets"]:
        rows.append(
            row("of the counted, in packets, octets and flags only", books["late_packets"], None, None)
        )
    if books["orphan_fragments"]:
        label = "of the counted, fragments with ports 0: their first was not seen"
        rows.append(row(label, books["orphan_fragments"], None, None))
    if books["dropped_packets"]:
        label = "of the seen, dropped (deny-list, guard)"
        rows.append(row(label, books["dropped_packets"], books["dropped_octets"], None))
    if books["insertions_failed"]:
        rows.append(row("insertions failed", None, None, books["insertions_failed"]))
    return rows
