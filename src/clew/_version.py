"""The version, in one place: packaging and telemetry both read it."""

__version__ = "0.1.0"
