"""Track a run on the release's MLflow by its service name, read it back and delete it."""

import tempfile
from pathlib import Path

from mlflow import MlflowClient

client = MlflowClient()
experiment = client.get_experiment_by_name("helm-test")
name = experiment.experiment_id if experiment else client.create_experiment("helm-test")
run = client.create_run(name).info.run_id
client.log_metric(run, "loss", 1.5, step=1)
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "artifact.txt"
    file.write_text("written by helm test")
    client.log_artifact(run, str(file))
    copy = Path(client.download_artifacts(run, file.name, tempfile.mkdtemp()))
assert client.get_run(run).data.metrics == {"loss": 1.5}, "MLflow lost the metric"
assert copy.read_text() == "written by helm test", "MLflow lost the artifact"
client.delete_run(run)
