"""Every name that clew emits, declared once: operations, metrics, events, and the names of the standards they follow."""
