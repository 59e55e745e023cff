"""Time exceeded, host unreachable and port unreachable between the same hosts; the last both ways."""

from scapy.layers.inet import ICMP, UDP

from craft import CLIENT, SERVER, Frame, data, frame, ip

FROM_CLIENT = ip(CLIENT, SERVER) / UDP(sport=5000, dport=33434) / data(12)
FROM_SERVER = ip(SERVER, CLIENT) / UDP(sport=6000, dport=33434) / data(12)


def frames() -> list[Frame]:
    return [
        frame(0, ip(SERVER, CLIENT) / ICMP(type=11, code=0) / FROM_CLIENT),
        frame(1, ip(SERVER, CLIENT) / ICMP(type=3, code=1) / FROM_CLIENT),
        frame(2, ip(SERVER, CLIENT) / ICMP(type=3, code=3) / FROM_CLIENT),
        frame(3, ip(SERVER, CLIENT) / ICMP(type=11, code=0) / FROM_CLIENT),
        frame(4, ip(CLIENT, SERVER) / ICMP(type=3, code=3) / FROM_SERVER),
    ]
