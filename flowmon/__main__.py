"""`python -m flowmon` is `flowmon`."""

from flowmon.cli import main

main()
