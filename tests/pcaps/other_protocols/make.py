"""Protocols whose headers are not looked into."""

from scapy.packet import Raw

from craft import CLIENT, SERVER, Frame, data, frame, ip

GRE_HEADER = Raw(b"\x00\x00\x88\xb5")  # an EtherType for experiments, so that nothing looks inside


def frames() -> list[Frame]:
    return [
        frame(0, ip(CLIENT, SERVER, proto=47) / GRE_HEADER / data(46)),
        frame(10, ip(CLIENT, "224.0.0.5", proto=89, ttl=1) / data(44)),
        frame(20, ip(SERVER, CLIENT, proto=47) / GRE_HEADER / data(6)),
    ]
