"""ARP, request and reply: no IP packet, so no flow."""

from scapy.layers.l2 import ARP

from craft import CLIENT, CLIENT_MAC, SERVER, SERVER_MAC, Frame, frame


def frames() -> list[Frame]:
    return [
        frame(0, ARP(op=1, hwsrc=CLIENT_MAC, psrc=CLIENT, pdst=SERVER), pad_to=60),
        frame(1, ARP(op=2, hwsrc=SERVER_MAC, psrc=SERVER, hwdst=CLIENT_MAC, pdst=CLIENT), pad_to=60),
    ]
