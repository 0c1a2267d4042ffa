"""Send a trace of each request to MLflow, after the request and in order."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlflow

from llavamed.tracking.mlflow_client import TrackingClient, readable_errors

logger = logging.getLogger(__name__)

EXPERIMENT = "llavamed-serve"
"""The experiment whose traces they are."""
_SETTING = "tracking_uri"


class Traces:
    """Traces at one MLflow server or database."""

    def __init__(self, tracking_uri: str) -> None:
        """Find or make the experiment, so that a wrong address is noticed at the start.

        Raises:
            TrackingError: MLflow does not answer there, or refuses.
        """
        TrackingClient(tracking_uri, _SETTING)  # makes a database where there is none
        with readable_errors(tracking_uri, _SETTING):
            mlflow.set_tracking_uri(tracking_uri)
            self._experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
        self._thread = ThreadPoolExecutor(1, "llavamed-traces")

    def add(self, line: dict[str, Any]) -> None:
        """Send a line of the audit log as a trace. No request waits for it, or fails by it."""
        self._thread.submit(self._send, line, time.time_ns())

    def close(self) -> None:
        """Send what is not sent yet."""
        self._thread.shutdown()
        mlflow.flush_trace_async_logging()

    def _send(self, line: dict[str, Any], end: int) -> None:
        facts = dict(line)
        questions, answers = facts.pop("questions", None), facts.pop("answers", None)
        try:
            span = mlflow.start_span_no_context(
                "chat",
                span_type="CHAT_MODEL",
                inputs=questions,
                attributes=facts,
                experiment_id=self._experiment,
                start_time_ns=end - int(line["seconds"] * 1e9),
            )
            span.end(
                outputs=answers, status="OK" if line["status"] == 200 else "ERROR", end_time_ns=end
            )
        except Exception as error:  # the answer was given; a trace is not worth more than a line
            logger.warning("a trace could not be sent: %s", type(error).__name__)
