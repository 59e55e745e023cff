"""All that talks to the kernel."""
