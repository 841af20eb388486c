"""The schema's history: one module per revision in `versions/`, written by `python -m caelum.kernel.migrate`."""
