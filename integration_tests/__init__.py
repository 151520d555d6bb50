"""Checks with real models that take longer than a test run: see docs/zoo.md."""
