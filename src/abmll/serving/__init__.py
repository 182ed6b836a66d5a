"""Saved tasks of a run, served over HTTP: `abmll serve` (docs/serving.md). Needs the extra `serve`."""

from abmll.errors import AbmllError

try:
    import fastapi  # optional extra
    import prometheus_client  # optional extra
    import uvicorn  # optional extra
except ImportError as error:
    raise AbmllError(
        f"abmll serve needs the extra `serve`: pip install fastapi uvicorn prometheus-client ({error})"
    ) from error

VERSIONS = {package.__name__: package.__version__ for package in (fastapi, uvicorn)}
"""Of what answers requests."""
del prometheus_client
