"""What the facade is made of: operations, spans, metrics, logs, context, and the state of the process."""
