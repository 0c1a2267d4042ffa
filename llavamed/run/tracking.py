"""Record the runs of a curriculum in MLflow. Only the driver writes to it.

The curriculum is a parent run, each stage and each evaluation a child. Runs are found again by tag,
so that a restarted job goes on in the same runs and logs nothing twice. No run is opened or changed
before something is logged to it.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
)

from llavamed.config.load import dump_config
from llavamed.config.run import RunConfig
from llavamed.data.prepared.dataset import PreparedDataset
from llavamed.errors import TrackingError
from llavamed.run.loss_plot import draw_loss
from llavamed.storage.location import Location, locate
from llavamed.storage.manifest import ExportManifest
from llavamed.storage.scratch import scratch_folder
from llavamed.tracking.mlflow_client import TrackingClient, shown_uri, tracking_uri
from llavamed.train.metrics import METRICS, StepRecord, is_declared

_KEY = "llavamed.key"
_PARENT = "mlflow.parentRunId"
_ERROR = "llavamed.error"
_MADE_BY = "llavamed.made_by"
_RECORDED = "llavamed.recorded"
_MODEL_TYPE = "llava"
_STEPS_PER_REQUEST = 1000 // (2 * len(METRICS))
"""A request holds a thousand values at most, and a step is logged whole or not at all."""
ALIAS = "current"
"""Alias of the newest version of a registered model; MLflow reserves `latest` for itself."""
CHAMPION = "champion"
"""Alias of the version of a registered model that last met the policy of its gate."""


def check_tracking(config: RunConfig) -> None:
    """Check that MLflow answers before any work is done. Raises: TrackingError."""
    Tracker(config)


class Tracker:
    """The runs of one curriculum. Every method raises TrackingError when the server refuses."""

    def __init__(self, config: RunConfig) -> None:
        uri = tracking_uri(config)
        self.uri = shown_uri(uri)
        self._config = config
        self._key = str(locate(config.directory))
        self._client = TrackingClient(uri)
        self._opened: list[str] = []
        self._find_experiment()

    def start(self, name: str, params: Mapping[str, object], made_by: str = "") -> "TrackedRun":
        """Open the child run of a stage or of an evaluation, or open it again if it exists.

        Args:
            name: Its name.
            params: The parameters to show.
            made_by: Fingerprint of what decides its numbers. A run that was made by something else,
                as before its folder was deleted, stays as it is, and a new one is opened.
        """
        tags = {_PARENT: self._parent} | ({_MADE_BY: made_by} if made_by else {})
        run_id = self._open_run(f"{self._key}/{name}", name, tags)
        self._log_params(run_id, params)
        return TrackedRun(self._client, self._experiment, run_id)

    def has_recorded(self, name: str, fingerprint: str) -> bool:
        """Return whether a child run has finished with the result of this fingerprint."""
        return self._has_recorded(f"{self._key}/{name}", fingerprint)

    def has_finished(self, fingerprint: str) -> bool:
        """Return whether the parent run has finished with this fingerprint."""
        return self._has_recorded(self._key, fingerprint)

    def register_model(self, export: str, result: ExportManifest) -> str:
        """Register the last stage's export as a version of the model named like the run.

        The alias `current` moves to a new version; a version that is already registered stays.

        Args:
            export: URI of a complete export, which therefore has been checked.

        Returns:
            A sentence that says what was done. A server accepts no path of another machine as a
            source, so an export in a local folder is only registered in a database on this machine.
        """
        name = self._config.name
        version = self._register(name, export, result)
        if version is None:
            return f"model {name}: not registered, because {self.uri} cannot read {export}"
        known = self._client.search_model_versions(f"name = '{name}'")
        if version >= max(int(each.version) for each in known):
            self._client.set_registered_model_alias(name, ALIAS, str(version))
        return f"model {name}: version {version} in the registry is {export}"

    def _register(self, name: str, export: str, result: ExportManifest) -> int | None:
        """Return the version of an export; None where the server cannot read it."""
        if locate(export).is_local and not self.uri.startswith("sqlite"):
            return None
        tags = {"export": export, "stage": result.stage, "fingerprint": result.fingerprint}
        if not self._is_registered(name):
            try:
                self._client.create_registered_model(name)
            except TrackingError:
                if not self._is_registered(name):  # by a run of the same name, at the same time
                    raise
        known = self._client.search_model_versions(f"name = '{name}'")
        mine = [int(each.version) for each in known if tags.items() <= each.tags.items()]
        if mine:
            return mine[0]
        new = self._client.create_model_version(name, export, run_id=self._parent, tags=tags)
        return int(new.version)

    def champion(self, name: str) -> dict[str, str] | None:
        """Return the tags of the version of a registered model that is its champion, if any."""
        if not self._is_registered(name):
            return None
        found = self._client.get_registered_model(name).aliases.get(CHAMPION)
        if found is None:
            return None
        return dict(self._client.get_model_version(name, str(found)).tags)

    def set_champion(
        self, name: str, export: str, result: ExportManifest, tags: dict[str, str]
    ) -> str:
        """Move the alias `champion` of a registered model to an export.

        Args:
            name: Name of the registered model, which is created if there is none.
            tags: Why it is the champion, and where its evaluation is.

        Returns:
            A sentence that says what was done.

        Raises:
            TrackingError: The server refuses, or cannot read an export in a local folder.
        """
        version = self._register(name, export, result)
        if version is None:
            raise TrackingError(
                f"tracking.uri={self.uri}: cannot read {export}, a folder of this machine; train "
                "into a storage that the server reaches"
            )
        for key, value in tags.items():
            self._client.set_model_version_tag(name, str(version), key, value)
        self._client.set_registered_model_alias(name, CHAMPION, str(version))
        return f"model {name}: version {version} is the champion"

    def finish(self, scores: Mapping[str, float], fingerprint: str = "") -> None:
        """Close the parent run.

        Args:
            fingerprint: Fingerprint of the run's result, for `has_finished`.
        """
        _finish(self._client, self._parent, scores, fingerprint)

    def fail(self, message: str) -> None:
        """Close the runs that this attempt has opened as failed, if the server still answers."""
        if not self._opened:
            return
        with suppress(TrackingError):
            self._client.set_tag(self._parent, _ERROR, message)
            for run_id in self._opened:
                if self._client.get_run(run_id).info.status == "RUNNING":
                    self._client.set_terminated(run_id, "FAILED")

    @cached_property
    def _parent(self) -> str:
        run_id = self._open_run(self._key, self._config.name, {})
        self._client.log_text(run_id, dump_config(self._config), "config.yaml")
        self._log_params(run_id, {"name": self._config.name, "seed": self._config.seed})
        return run_id

    @cached_property
    def _experiment(self) -> str:
        if found := self._find_experiment():
            return found
        name, place = self._config.tracking.experiment, None  # a server has its own place
        if self.uri.startswith("sqlite") and (storage := locate(self._config.storage)).is_local:
            place = (Path(storage.path) / "mlartifacts").as_uri()
        try:
            return str(self._client.create_experiment(name, artifact_location=place))
        except TrackingError:
            if found := self._find_experiment():  # another run has just made it
                return found
            raise

    def _find_experiment(self) -> str | None:
        name = self._config.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return None
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"tracking.experiment={name}: is deleted in MLflow; restore it with `mlflow "
                f"experiments restore --experiment-id {found.experiment_id}`, or set "
                "tracking.experiment to another name"
            )
        return str(found.experiment_id)

    def _find_run(self, key: str) -> Run | None:
        experiment = self._find_experiment()
        if experiment is None:
            return None
        condition = f"tags.`{_KEY}` = '{_plain(key)}'"
        found = self._client.search_runs([experiment], filter_string=condition, max_results=1)
        return found[0] if found else None

    def _has_recorded(self, key: str, fingerprint: str) -> bool:
        run = self._find_run(key)
        if run is None or run.info.status != "FINISHED":
            return False
        is_same = run.data.tags.get(_RECORDED) == fingerprint
        return is_same and (key == self._key or self._find_parent() == run.data.tags.get(_PARENT))

    def _find_parent(self) -> str | None:
        run = self._find_run(self._key)
        return None if run is None else str(run.info.run_id)

    def _open_run(self, key: str, name: str, tags: dict[str, str]) -> str:
        found = self._find_run(key)
        made_by = tags.get(_MADE_BY)
        if found is None or (made_by and found.data.tags.get(_MADE_BY, made_by) != made_by):
            tags = {_KEY: _plain(key), **tags}
            run = self._client.create_run(self._experiment, run_name=name, tags=tags)
            run_id = str(run.info.run_id)
        else:
            run_id = str(found.info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            for tag, value in tags.items():  # the parent may be a new one
                self._client.set_tag(run_id, tag, value)
            if _ERROR in found.data.tags:  # of the attempt before
                self._client.delete_tag(run_id, _ERROR)
        self._opened.append(run_id)
        return run_id

    def _is_registered(self, name: str) -> bool:
        return bool(self._client.search_registered_models(f"name = '{name}'"))

    def _log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        there = self._client.get_run(run_id).data.params
        new = [Param(key, str(value)) for key, value in params.items() if key not in there]
        self._client.log_batch(run_id, params=new)


def _plain(key: str) -> str:
    """Return a key without quotes, which the filters of MLflow cannot contain."""
    return quote(key, safe="/:@ +,=")


def _log_scores(client: TrackingClient, run_id: str, scores: Mapping[str, float]) -> None:
    """Log single values, leaving out those that a run shows already."""
    there, now = client.get_run(run_id).data.metrics, int(time.time() * 1000)
    new = [Metric(key, value, now, 0) for key, value in scores.items() if there.get(key) != value]
    if new:
        client.log_batch(run_id, new)


def _finish(
    client: TrackingClient, run_id: str, scores: Mapping[str, float], fingerprint: str
) -> None:
    _log_scores(client, run_id, scores)
    client.set_tag(run_id, _RECORDED, fingerprint)
    client.set_terminated(run_id, "FINISHED")


class TrackedRun:
    """One child run. Every method raises TrackingError when the server refuses."""

    def __init__(self, client: TrackingClient, experiment: str, run_id: str) -> None:
        self._client = client
        self._experiment = experiment
        self.run_id = run_id
        logged = client.get_metric_history(run_id, "loss")
        self._logged = {metric.step for metric in logged}

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
        new = [record for record in records if record["step"] not in self._logged]
        for start in range(0, len(new), _STEPS_PER_REQUEST):
            some = new[start : start + _STEPS_PER_REQUEST]
            metrics = [
                Metric(key, float(value), now, int(record["step"]))
                for record in some
                for key, value in record.items()
                if key != "step" and is_declared(key)
            ]
            self._client.log_batch(self.run_id, metrics)
            self._logged |= {int(record["step"]) for record in some}

    def log_scores(self, scores: Mapping[str, float]) -> None:
        """Log single values, leaving out those that the run shows already."""
        _log_scores(self._client, self.run_id, scores)

    def log_text(self, text: str, name: str) -> None:
        """Keep a text file as an artifact."""
        self._client.log_text(self.run_id, text, name)

    def log_file(self, file: Location) -> None:
        """Keep a copy of a file as an artifact. Raises: StorageError."""
        with scratch_folder() as folder:
            copy = folder / file.name
            with file.open() as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
            self._client.log_artifact(self.run_id, str(copy))

    def log_result(
        self, name: str, export: str, result: ExportManifest, history: Sequence[StepRecord]
    ) -> None:
        """Record a finished stage: its sums, and the steps that workers could not report.

        Args:
            name: Name of its model.
        """
        self.log_records(history)
        self._client.log_figure(self.run_id, draw_loss(history), "loss.png")
        scores = {f"step_seconds.{name}": value for name, value in result.step_seconds.items()}
        for part, facts in result.parts.items():
            scores[f"parameters_trained.{part}"] = float(facts.num_trained)
            scores[f"parameters_frozen.{part}"] = float(facts.num_frozen)
        self.log_scores(scores)
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
        if known and known[0].status == LoggedModelStatus.READY:
            return
        model = known[0] if known else self._create_model(name, export)
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, 0)])
        now = int(time.time() * 1000)
        values = [
            Metric(key, value, now, 0, model_id=model.model_id) for key, value in metrics.items()
        ]
        self._client.log_batch(self.run_id, values)
        self._client.finalize_logged_model(model.model_id, "READY")  # last: now it is complete

    def _create_model(self, name: str, export: str) -> LoggedModel:
        return self._client.create_logged_model(
            self._experiment,
            name=name.replace(".", "-"),  # a run's name may have dots, which MLflow refuses here
            source_run_id=self.run_id,
            model_type=_MODEL_TYPE,
            tags={"export": export},
        )

    def finish(self, fingerprint: str = "") -> None:
        """Close the run, which now shows the complete result with this fingerprint."""
        _finish(self._client, self.run_id, {}, fingerprint)
