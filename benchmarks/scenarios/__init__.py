"""What is measured: one module a scenario, which runs in the driving process and asks the variants' processes to work."""
