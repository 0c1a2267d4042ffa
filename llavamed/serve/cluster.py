"""The service on a Ray cluster: replicas that Ray Serve adds, watches, replaces and drains.

`serve run llavamed.serve.cluster:app export=URI` starts it, and so does a RayService whose
`import_path` names `app`. Each replica is the same application as that of one process, with a model
of its own. A replica that is taken away ends its requests first.
"""

from typing import Any

from pydantic import Field, model_validator
from ray import serve

from llavamed.config.section import Count, Section
from llavamed.config.serving import Serving
from llavamed.errors import ConfigError
from llavamed.serve.access import read_tokens
from llavamed.serve.launch import make_backend
from llavamed.serve.service import Service
from llavamed.tracking.registered import find_export

_SETTLED_SECONDS = 2.0
"""Seconds between two looks at whether a replica that is taken away has ended its requests."""


class Replicas(Section):
    """Settings of the Ray Serve application: an export or an engine, and its replicas."""

    export: str | None = None
    """Folder of the export, at a URI that every node reaches, or `models:/NAME@ALIAS`, for which
    the registry at `MLFLOW_TRACKING_URI` is asked when the application is deployed."""
    min_replicas: Count = 1
    """Fewest replicas."""
    max_replicas: Count = 1
    """Maximum number of replicas. Ray Serve adds some while more requests run than fit into a
    batch."""
    num_cpus: float = Field(1, ge=0)
    """Processors of a replica."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of a replica."""
    serving: Serving = Serving()
    """Settings of the service. Ray Serve sets the address, so `host` and `port` are not read."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "Replicas":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas}: is less than min_replicas="
                f"{self.min_replicas}; raise it"
            )
        return self


class _Replica:
    """One process with a model."""

    def __init__(self, replicas: Replicas) -> None:
        """Load the model.

        Raises:
            ConfigError: There is no token that all replicas share.
        """
        serving = replicas.serving
        tokens, made = read_tokens(serving)
        if made is not None:
            raise ConfigError(
                f"token_env={serving.token_env}: is not set on the node, and replicas cannot make "
                "a token that they share; set it, or token_file, on every node"
            )
        self._service = Service(
            serving, make_backend(replicas.export, serving), tokens, replicas.export
        )

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application that Ray Serve calls."""
        return self._service.app()

    def check_health(self) -> None:
        """Raise an error if the model has stopped, so that Ray Serve replaces the replica."""
        self._service.backend.check()


Replica: Any = serve.deployment(name="llavamed")(serve.ingress()(_Replica))
"""The deployment of which Ray Serve makes replicas."""


def app(args: dict[str, Any]) -> serve.Application:
    """Return the application for Ray Serve. Its arguments are the fields of `Replicas`.

    All replicas get the export that an alias stands for now. Deployed again after the alias has
    moved, the application has another export, which Ray Serve loads next to the old one.
    """
    replicas = Replicas.model_validate(args)
    if replicas.export is not None:
        place = find_export(replicas.export)
        replicas = replicas.model_copy(update={"export": str(place)})
    serving = replicas.serving
    return Replica.options(
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": serving.max_batch_size,
        },
        # Beyond that the replica itself refuses, in the form of OpenAI.
        max_ongoing_requests=serving.max_batch_size + serving.max_waiting + 8,
        graceful_shutdown_timeout_s=serving.drain_seconds,
        graceful_shutdown_wait_loop_s=_SETTLED_SECONDS,
        ray_actor_options={"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
    ).bind(replicas)
