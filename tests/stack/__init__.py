"""Tests against the real Collector, Prometheus, Loki and Jaeger, run with the configuration that compose mounts."""
