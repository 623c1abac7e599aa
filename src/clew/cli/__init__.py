"""The ``clew`` command: one file per command group."""
