"""Benchmarks: what LionWeb is measured by. `make bench` runs them; tests are never timed."""
