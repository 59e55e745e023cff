"""Packets that were captured earlier: files of tcpdump, dumpcap and Wireshark."""
