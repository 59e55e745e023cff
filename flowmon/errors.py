"""Errors by whose fault they are.

The message names the thing, what was expected and what to do about it; the
command line prints it as one line and exits with `exit_status`.
"""


class FlowmonError(Exception):
    """What a user can cause or mend."""

    exit_status = 1


class ReaderGoneError(FlowmonError):
    """Whoever read our output has gone: nothing to complain of."""

    exit_status = 0


class ConfigError(FlowmonError):
    """The user's: an option or file that cannot be."""

    exit_status = 2


class KernelError(FlowmonError):
    """The host's: a privilege, a kernel feature, an interface, a pinned object."""


class SinkError(FlowmonError):
    """Downstream: a directory, a disk, a collector."""


class NotSentError(SinkError):
    """Records that a sink had taken, and that did not arrive: they are gone, and in no table either."""
