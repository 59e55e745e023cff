"""An option of length 0, one of length 1, one that is longer than the header, and one without a length."""

from scapy.layers.inet import UDP

from craft import CLIENT, Frame, data, frame, raw_ipv4

DATAGRAM = bytes(UDP(sport=5000, dport=9, len=38, chksum=0) / data(30))
WRONG = ["01440001", "01440194", "01440501", "01010144"]


def frames() -> list[Frame]:
    return [
        frame(at, raw_ipv4(CLIENT, f"198.51.100.{at}", 17, DATAGRAM, options=bytes.fromhex(options)))
        for at, options in enumerate(WRONG, 1)
    ]
