"""All three optional fields, two of them, a bridged frame with a tag; then routing, version 1, ERSPAN, a short header."""

from scapy.packet import Raw

from craft import FAR, IPV4, NEAR, Frame, ethernet, frame, gre, ip, reply, request

FORTH, BACK = ip(NEAR, FAR, proto=47), ip(FAR, NEAR, proto=47)
BRIDGED = Raw(ethernet(IPV4, (0x8100, 5)) + bytes(request(31)))


def frames() -> list[Frame]:
    return [
        frame(0, FORTH / gre(IPV4, key=7, checksum=True, sequence=1) / request()),
        frame(1, BACK / gre(IPV4, key=7, sequence=1) / reply()),
        frame(2, FORTH / gre(0x6558, key=7) / BRIDGED),
        frame(3, FORTH / Raw(bytes.fromhex("40000800")) / request()),
        frame(4, FORTH / Raw(bytes.fromhex("20010800003a0001")) / request()),
        frame(5, FORTH / gre(0x88BE, sequence=1) / Raw(ethernet(IPV4)) / request()),
        frame(6, FORTH / Raw(bytes(gre(IPV4, key=7, checksum=True, sequence=1))[:8])),
    ]
