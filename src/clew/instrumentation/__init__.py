"""Drop-ins, one file per library, and the registry behind ``clew.instrument()``."""
