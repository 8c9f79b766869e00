"""Runnable jobs over the connector: ``python -m pipelines.NAME --help``."""
