"""Jobs: work that a schedule, or anything else, starts."""
