"""From the engine to OTLP: providers, sampling, redaction, encoding, transport, the disk spool and the one export worker."""
