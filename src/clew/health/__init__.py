"""Health that tells the truth: checks that run all at once, each within its own time, and what they found."""
