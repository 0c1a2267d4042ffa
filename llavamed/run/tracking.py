"""MLflow, and nothing else of ours imports it. Only the driver writes, whatever the server.

The curriculum is a parent run, each stage and the evaluation a child. Runs are found again by tag,
so that a job started again goes on in the same runs, and a step that was logged is not logged
twice.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
)
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from llavamed.config.load import dump_config
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.errors import TrackingError
from llavamed.storage.location import locate
from llavamed.storage.manifest import ExportManifest
from llavamed.train.context import StepRecord

_KEY = "llavamed.key"
_PARENT = "mlflow.parentRunId"
_ERROR = "llavamed.error"
_MODEL_TYPE = "llava"
ALIAS = "current"
"""Of the newest version of a registered model; MLflow keeps `latest` for itself."""


def tracking_uri(config: RunConfig) -> str:
    """The server to use: the config's, the environment's, or SQLite in a local storage folder.

    Raises:
        TrackingError: There is none, and the storage is not local.
    """
    if uri := config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    storage = locate(config.storage)
    if not storage.is_local:
        raise TrackingError(
            f"tracking.uri=null: SQLite cannot live in {storage}; set tracking.uri or "
            "MLFLOW_TRACKING_URI to an MLflow server"
        )
    return f"sqlite:///{storage.path}/mlflow.db"


@contextmanager
def readable_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into a sentence. Raises: TrackingError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"tracking.uri={uri}: {str(error).splitlines()[0]}; start the server, or set "
            "tracking.uri to one that answers"
        ) from error


class _Client:
    """MLflow's client, each of whose methods raises TrackingError when the server refuses."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with readable_errors(uri):
            self._client = MlflowClient(uri)

    def __getattr__(self, name: str) -> Any:
        return readable_errors(self._uri)(getattr(self._client, name))


def check_tracking(config: RunConfig) -> None:
    """Ask for an answer before any work is done. Raises: TrackingError."""
    _Client(tracking_uri(config)).search_experiments(max_results=1)


class Tracker:
    """The runs of one curriculum. Every method raises TrackingError when the server refuses."""

    def __init__(self, config: RunConfig) -> None:
        self.uri = tracking_uri(config)
        self._config = config
        self._key = str(locate(config.directory))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        self._client = _Client(self.uri)
        self._experiment = self._open_experiment()
        self._children: list[str] = []
        self._parent = self._open_run(self._key, config.name, {})
        self._client.log_text(self._parent, dump_config(config), "config.yaml")
        self._log_params(self._parent, {"name": config.name, "seed": config.seed})

    def start(self, name: str, params: dict[str, Any]) -> "TrackedRun":
        """The child run of a stage or of the evaluation; opened again when it exists."""
        run_id = self._open_run(f"{self._key}/{name}", name, {_PARENT: self._parent})
        self._children.append(run_id)
        self._log_params(run_id, params)
        return TrackedRun(self._client, self._experiment, run_id)

    def register_model(self, export: str, result: ExportManifest) -> str:
        """Register the last stage's export as a version of the model named like the run.

        The alias `current` moves to a new version; one that is registered already stays.

        Args:
            export: URI of a complete export, which therefore has been checked.
            result: Its manifest.

        Returns:
            A sentence of what was done. A server takes no path of another machine as a source, so
            an export in a local folder is only registered in a database here.
        """
        name = self._config.name
        if locate(export).is_local and not self.uri.startswith("sqlite"):
            return f"model {name}: not registered, for {self.uri} cannot read {export}"
        tags = {"export": export, "stage": result.stage, "fingerprint": result.fingerprint}
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        known = self._client.search_model_versions(f"name = '{name}'")
        mine = [int(each.version) for each in known if tags.items() <= each.tags.items()]
        if not mine:
            new = self._client.create_model_version(name, export, run_id=self._parent, tags=tags)
            mine = [int(new.version)]
        if mine[0] >= max([int(each.version) for each in known], default=0):
            self._client.set_registered_model_alias(name, ALIAS, str(mine[0]))
        return f"model {name}: version {mine[0]} in the registry is {export}"

    def finish(self, scores: dict[str, float]) -> None:
        """Close the parent run with the scores of the evaluation."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in scores.items()]
        self._client.log_batch(self._parent, metrics)
        self._client.set_terminated(self._parent, "FINISHED")

    def fail(self, message: str) -> None:
        """Close the parent run and what runs below it as failed, if the server still answers."""
        with suppress(TrackingError):
            self._client.set_tag(self._parent, _ERROR, message)
            for run_id in (*self._children, self._parent):
                if self._client.get_run(run_id).info.status == "RUNNING":
                    self._client.set_terminated(run_id, "FAILED")

    def _open_experiment(self) -> str:
        name = self._config.tracking.experiment
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        storage = locate(self._config.storage)
        local = self.uri.startswith("sqlite")
        place = f"{storage.path}/mlartifacts" if local else None  # a server has its own
        return str(self._client.create_experiment(name, artifact_location=place))

    def _open_run(self, key: str, name: str, tags: dict[str, str]) -> str:
        found = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`{_KEY}` = '{key}'", max_results=1
        )
        if found:
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            if _ERROR in found[0].data.tags:  # of the attempt before
                self._client.delete_tag(run_id, _ERROR)
            return run_id
        run = self._client.create_run(self._experiment, run_name=name, tags={_KEY: key, **tags})
        return str(run.info.run_id)

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        there = self._client.get_run(run_id).data.params
        new = [Param(key, str(value)) for key, value in params.items() if key not in there]
        self._client.log_batch(run_id, params=new)


class TrackedRun:
    """One child run. Every method raises TrackingError when the server refuses."""

    def __init__(self, client: _Client, experiment: str, run_id: str) -> None:
        self._client = client
        self._experiment = experiment
        self.run_id = run_id
        logged = client.get_metric_history(run_id, "loss")
        self._last_step = max((metric.step for metric in logged), default=0)

    def log_dataset(self, dataset: PreparedDataset, context: str) -> None:
        """Record the dataset's manifest as an input of the run."""
        manifest = dataset.manifest
        entry = Dataset(
            name=dataset.name,
            digest=manifest.fingerprint,
            source_type="llavamed",
            source=json.dumps({"uri": str(dataset.location)}),
            profile=json.dumps(
                {"num_samples": manifest.num_samples, "num_tokens": manifest.num_tokens}
            ),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self.run_id, [DatasetInput(entry, tags)])
        facts = manifest.model_dump(mode="json")
        self._client.log_dict(self.run_id, facts, f"datasets/{dataset.name}.json")

    def log_records(self, records: Sequence[StepRecord]) -> None:
        """Log every step's metrics, leaving out steps that were logged before."""
        now = int(time.time() * 1000)
        new = [record for record in records if record["step"] > self._last_step]
        metrics = [
            Metric(key, float(value), now, int(record["step"]))
            for record in new
            for key, value in record.items()
            if key != "step"
        ]
        for start in range(0, len(metrics), 1000):  # the most a request may hold
            self._client.log_batch(self.run_id, metrics[start : start + 1000])
        self._last_step = max([self._last_step, *(int(record["step"]) for record in new)])

    def log_scores(self, scores: dict[str, float]) -> None:
        """Log single values."""
        now = int(time.time() * 1000)
        self._client.log_batch(self.run_id, [Metric(k, v, now, 0) for k, v in scores.items()])

    def log_text(self, text: str, name: str) -> None:
        """Keep a text file as an artifact."""
        self._client.log_text(self.run_id, text, name)

    def _log_loss_plot(self, history: Sequence[StepRecord]) -> None:
        """Keep a plot of loss and learning rate as an artifact."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        loss_axis = figure.add_subplot()
        steps = [record["step"] for record in history]
        loss_axis.plot(steps, [record["loss"] for record in history], color="tab:blue")
        loss_axis.set(xlabel="optimizer step", ylabel="loss, mean over supervised tokens")
        rate_axis = loss_axis.twinx()
        rate_axis.plot(steps, [record["learning_rate"] for record in history], color="tab:gray")
        rate_axis.set_ylabel("learning rate")
        self._client.log_figure(self.run_id, figure, "loss.png")

    def log_result(
        self, name: str, export: str, result: ExportManifest, history: Sequence[StepRecord]
    ) -> None:
        """Record a finished stage: what the workers could not tell before they ended, and its sums.

        Args:
            name: Of its model.
            export: URI of its export.
            result: The export's manifest.
            history: The records of all its steps.
        """
        self.log_records(history)
        self._log_loss_plot(history)
        for part, facts in result.parts.items():
            trained, frozen = float(facts.num_trained), float(facts.num_frozen)
            self.log_scores({f"parameters_trained.{part}": trained})
            self.log_scores({f"parameters_frozen.{part}": frozen})
        seconds = result.step_seconds.items()
        self.log_scores({f"step_seconds.{name}": value for name, value in seconds})
        values = {
            "loss_first": result.loss_first,
            "loss_last": result.loss_last,
            "seconds": result.seconds,
        }
        self._log_export(name, export, values)

    def _log_export(self, name: str, export: str, metrics: dict[str, float]) -> None:
        """Record an export as a LoggedModel; its weights stay where they are, at `export`."""
        known = self._client.search_logged_models(
            [self._experiment], filter_string=f"source_run_id = '{self.run_id}'"
        )
        if known:
            return
        model = self._client.create_logged_model(
            self._experiment,
            name=name.replace(
                ".", "-"
            ),  # MLflow takes no dots here, and a run's name may have some
            source_run_id=self.run_id,
            model_type=_MODEL_TYPE,
            tags={"export": export},
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, 0)])
        now = int(time.time() * 1000)
        values = [
            Metric(key, value, now, 0, model_id=model.model_id) for key, value in metrics.items()
        ]
        self._client.log_batch(self.run_id, values)

    def finish(self) -> None:
        """Close the run."""
        self._client.set_terminated(self.run_id, "FINISHED")
