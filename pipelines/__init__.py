"""Runnable jobs over the connector: ``python -m pipelines.NAME --help``."""

import logging

# Beam 2.77 warns at import that its BigQuery client is incomplete whenever google-auth is installed without the rest
# of its gcp extra. That is always so here, and nothing in these jobs uses it.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
