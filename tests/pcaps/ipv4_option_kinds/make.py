"""No operation, record route, timestamp, source routes, router alert; nothing behind the end of the list counts."""

from scapy.layers.inet import UDP

from craft import CLIENT, SERVER, Frame, data, frame, option, raw_ipv4, reply

ROUTER_ALERT = option(148, bytes(2))
RECORD_ROUTE = option(7, bytes([4, 0, 0, 0, 0]))
LOOSE_ROUTE = option(131, bytes([8, 10, 0, 0, 1]))
STRICT_ROUTE = option(137, bytes([8, 10, 0, 0, 1]))
TIMESTAMP = option(68, bytes([5, 0, 0, 0, 0, 0]))
ROUTER_ALERT_OF_2 = option(148, b"")
DATAGRAM = bytes(UDP(sport=5000, dport=9, len=38, chksum=0) / data(30))


def frames() -> list[Frame]:
    return [
        frame(0, raw_ipv4(CLIENT, SERVER, 17, DATAGRAM, options=ROUTER_ALERT)),
        frame(1, raw_ipv4(CLIENT, SERVER, 17, DATAGRAM, options=b"\x01" + RECORD_ROUTE)),
        frame(
            2, raw_ipv4(CLIENT, SERVER, 17, DATAGRAM, options=LOOSE_ROUTE + b"\x01" + STRICT_ROUTE + b"\x01")
        ),
        frame(3, raw_ipv4(CLIENT, SERVER, 17, DATAGRAM)),
        frame(4, reply()),
        frame(
            5,
            raw_ipv4(SERVER, "192.0.2.3", 17, DATAGRAM, options=TIMESTAMP + b"\x00\x02" + ROUTER_ALERT_OF_2),
        ),
    ]
