"""An alert in words, for whoever reads along."""

from datetime import UTC, datetime

from flowmon.analysers.alerts import Alert

NS = 1_000_000_000
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp"}
MANY = "many"


def line(alert: Alert) -> str:
    """One line, with the time of the latest evidence and without a line feed."""
    at = datetime.fromtimestamp(alert.end_ns // NS, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%SZ} {sentence(alert)}"


def sentence(alert: Alert) -> str:
    """The same without the time: what is said of whom, and on what evidence."""
    what = f"{alert.state} {alert.detector} {alert.kind}"
    whom = f"{alert.source or MANY} → {alert.victim or MANY}{_port(alert)}"
    return f"{what}: {whom}: {', '.join(_evidence(alert))}"


def _port(alert: Alert) -> str:
    protocol = "" if alert.protocol is None else _PROTOCOLS.get(alert.protocol, f"protocol {alert.protocol}")
    if alert.port is None:
        return f" {protocol}" if protocol else ""
    return f" port {alert.port}/{protocol}" if protocol else f" port {alert.port}"


def _evidence(alert: Alert) -> list[str]:
    counts = ((alert.sources, "source"), (alert.hosts, "host"), (alert.ports, "port"))
    found = [_counted(number, noun) for number, noun in counts if number is not None]
    if alert.failures is not None and alert.attempts is not None:
        found.append(f"{alert.failures} of {_counted(alert.attempts, 'attempt')} failed")
    elif alert.attempts is not None:
        found.append(_counted(alert.attempts, "attempt"))
    elif alert.failures is not None:
        found.append(f"{_counted(alert.failures, 'attempt')} failed")
    if alert.rate is not None:
        found.append(f"up to {alert.rate:.4g} a second")
    found.append(f"confidence {alert.confidence:.2f}")
    if alert.action:
        found.append(alert.action)
    return found


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
