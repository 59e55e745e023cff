"""IPFIX and NetFlow v9 messages out of record batches. Nothing here sends or writes."""
