"""Prints the records of a directory as a table, the largest flows first: `show_flows.py DIR [ROWS]`."""

import sys

import duckdb
from rich.console import Console
from rich.table import Table
from rich.text import Text

ENDPOINT = """
    create macro endpoint(address, port) as
        case when port = 0 then address when contains(address, ':') then '[' || address || ']:' || port
            else address || ':' || port end
"""
QUERY = """
    select strftime(flowStartNanoseconds, '%H:%M:%S.%g') as start,
        format('{:.3f}', (epoch_ns(flowEndNanoseconds) - epoch_ns(flowStartNanoseconds)) / 1e9) as seconds,
        case protocolIdentifier when 1 then 'icmp' when 6 then 'tcp' when 17 then 'udp' when 58 then 'icmp6'
            else protocolIdentifier::text end as proto,
        endpoint(sourceAddress, sourceTransportPort) as source,
        endpoint(destinationAddress, destinationTransportPort) as destination,
        packetDeltaCount as packets, reversePacketDeltaCount as back,
        octetDeltaCount as octets, reverseOctetDeltaCount as "octets back",
        ['', 'idle', 'active', 'end', 'forced', 'resources'][flowEndReason + 1] as ended
    from read_parquet(? || '/date=*/**/*.parquet', hive_partitioning = true)
    order by octetDeltaCount + reverseOctetDeltaCount desc limit ?
"""


def main() -> None:
    """Reads, prints."""
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    connection = duckdb.connect()
    connection.execute(ENDPOINT)
    result = connection.execute(QUERY, [sys.argv[1], rows])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in result.description or ():
        numeric = column[0] in ("seconds", "packets", "back", "octets", "octets back")
        table.add_column(column[0], justify="right" if numeric else "left", no_wrap=True)
    for row in result.fetchall():
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else str(value)) for value in row))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
