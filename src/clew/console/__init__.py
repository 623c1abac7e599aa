"""The embedded backend: an OTLP/HTTP receiver, an on-disk store of traces, logs and metrics, and queries over it.

For people with nothing but Python. Import what you need from its modules: `clew.console.server` runs it,
`clew.console.queries` asks it.
"""
