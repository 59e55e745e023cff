"""The packets of sessions, one row each, for whoever trains or runs a model on them."""
