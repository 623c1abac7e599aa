"""What clew costs beside its peers, measured in one run: ``python -m benchmarks run``, or ``make bench``."""
