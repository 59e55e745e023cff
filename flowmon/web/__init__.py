"""What flowmon tells about itself over HTTP."""
