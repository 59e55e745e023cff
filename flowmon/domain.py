"""Who observes: the default observationDomainId."""

import zlib
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")


def default_observation_domain_id() -> int:
    """A number from 1 to 2^32 - 1 from the machine's id (the host name where it has none).

    Stable over restarts, likely unique among hosts (RFC 7011 section 3.1).
    """
    try:
        identity = MACHINE_ID.read_text().strip()
    except OSError:
        identity = ""
    if not identity:
        identity = Path("/proc/sys/kernel/hostname").read_text().strip()
    return zlib.crc32(identity.encode()) or 1
