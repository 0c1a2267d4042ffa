"""Talk to the API server of Kubernetes. This is the only file that knows its client.

Objects are plain JSON. Temporary failures (a time-out, a server that restarts) are retried; others
are raised as one sentence.
"""

import base64
import json
import logging
import os
import shlex
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION, KubeConfigMerger
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from llavamed.cluster.explain import Call, explain, no_answer, not_kubernetes
from llavamed.cluster.kinds import SECRET, SERVICE_PROXY, Kind, Object, name_of
from llavamed.errors import ClusterError, ConfigError, NotFoundError, UnreachableError
from llavamed.storage import retry

ATTEMPTS = 6
TIMEOUT_SECONDS = (5.0, 30.0)
"""Time limits for the server to accept a connection, and to answer."""
SUBMISSION = "llavamed.io/submission"
"""Annotation with a random mark, by which a call of `create` recognizes its own object."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_BROKEN_FILE = (ConfigException, OSError, TypeError, ValueError, yaml.YAMLError)
"""What the client raises about a kubeconfig that has another form than it expects."""
_MAY_PASS = {429, 500, 502, 503, 504}

logger = logging.getLogger(__name__)


class Cluster:
    """One cluster and namespace, as the current user sees them."""

    def __init__(self, namespace: str | None = None, context: str | None = None) -> None:
        """Read the kubeconfig or, within a pod, its service account.

        Args:
            namespace: By default that of the context, or `default`.
            context: Context of the kubeconfig. By default the current one.

        Raises:
            ConfigError: There is no kubeconfig, or it has no such context.
        """
        self._context = context
        self._api, own = _connect(context)
        self.namespace = namespace or own or "default"
        given = {"--namespace": namespace, "--context": context}
        self.options = "".join(f" {key} {shlex.quote(word)}" for key, word in given.items() if word)
        """What another command needs to get to the same namespace and cluster."""

    def version(self) -> str:
        """Return the version of Kubernetes. Raises: ClusterError."""
        call = Call("get", Kind("Version", "", "v1", "version", is_namespaced=False), None, name="")
        return str(self._ask("GET", "/version", call)["gitVersion"])

    def get(self, kind: Kind, name: str) -> Object:
        """Return an object. Raises: ClusterError."""
        return self._get(self._call("get", kind, name))

    def _get(self, call: Call) -> Object:
        found: Object = self._ask("GET", call.kind.path(self.namespace, call.name), call)
        return found

    def get_any(self, kinds: tuple[Kind, ...], name: str) -> Object:
        """Return the object of a name, of the first of some kinds that has it.

        Raises:
            NotFoundError: None has it; the message tells what there is of these kinds.
            ClusterError: Objects of the first kind may not be read.
        """
        for kind in kinds:
            try:
                return self._get(replace(self._call("get", kind, name), others=()))
            except NotFoundError:
                continue
            except ClusterError as error:
                if kind is kinds[0] or isinstance(error, UnreachableError):
                    raise
        # Only now does the message need the names of what there is.
        return self._get(replace(self._call("get", kinds[0], name), others=kinds))

    def find_all(self, kind: Kind, *, selector: str = "", everywhere: bool = False) -> list[Object]:
        """Return all objects of a kind. Raises: ClusterError.

        Args:
            selector: Labels that they must have.
            everywhere: Whether to search all namespaces, not only this one.
        """
        namespace = None if everywhere or not kind.is_namespaced else self.namespace
        query = urlencode({"labelSelector": selector}) if selector else ""
        path = kind.path(namespace) + (f"?{query}" if query else "")
        call = Call("list", kind, namespace, name="")
        items: list[Object] = self._ask("GET", path, call)["items"]
        # Items of a list do not repeat their kind.
        return [{"apiVersion": kind.api_version, "kind": kind.name} | item for item in items]

    def create(self, kind: Kind, thing: Object) -> Object:
        """Create an object. Raises: ClusterError.

        If the answer to the first attempt is lost, a later attempt finds the object.
        """
        mark = uuid.uuid4().hex
        annotations = thing["metadata"].get("annotations", {}) | {SUBMISSION: mark}
        thing = thing | {"metadata": thing["metadata"] | {"annotations": annotations}}
        call = self._call("create", kind, name_of(thing))
        path = f"{kind.path(self.namespace)}?fieldValidation=Strict"

        def recover(status: int) -> Object | None:
            if status != 409:
                return None
            there = self.get(kind, name_of(thing))
            is_ours = there["metadata"].get("annotations", {}).get(SUBMISSION) == mark
            return there if is_ours else None

        made: Object = self._ask("POST", path, call, body=thing, recover=recover)
        return made

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object, and what it owns. Raises: ClusterError."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        path = kind.path(self.namespace, name)
        self._ask("DELETE", path, self._call("delete", kind, name), body=body)

    def secret(self, name: str, key: str) -> str:
        """Return one value of a Secret. Raises: ClusterError."""
        data = self.get(SECRET, name).get("data") or {}
        if key not in data:
            raise ClusterError(
                f"Secret={name}: has no key {key}, only {', '.join(data) or 'none'}; add it"
            )
        return base64.b64decode(data[key]).decode()

    def ask_service(
        self,
        method: str,
        service: str,
        port: int,
        path: str,
        headers: Mapping[str, str],
        read: Callable[[str], Any] = json.loads,
    ) -> Any:
        """Send a request to a service, through the API server, and return what it answers.

        Args:
            method: GET or POST.
            read: Reads the text of the answer, which is JSON by default.

        Raises:
            ClusterError: The service refuses it, or has no pod behind it.
        """
        verb = {"GET": "get", "POST": "create"}[method]
        call = self._call(verb, SERVICE_PROXY, service)
        place = f"/api/v1/namespaces/{self.namespace}/services/{service}:{port}/proxy{path}"
        return self._ask(method, place, call, headers=headers, read=read)

    def _call(self, verb: str, kind: Kind, name: str) -> Call:
        namespace = self.namespace if kind.is_namespaced else None
        return Call(verb, kind, namespace, name=name, others=(kind,), options=self.options)

    def _ask(
        self,
        method: str,
        path: str,
        call: Call,
        *,
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        recover: Callable[[int], Object | None] = lambda _: None,
        read: Callable[[str], Any] = json.loads,
    ) -> Any:
        """Send a request, retry it after temporary failures, and return what `read` makes of it."""

        def warn(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            logger.warning("%s; attempt %d of %d", error, state.attempt_number, ATTEMPTS)

        retrying = Retrying(
            retry=retry_if_exception_type(UnreachableError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=retry.WAIT,
            before_sleep=warn,
            reraise=True,
        )
        for attempt in retrying:
            with attempt:
                number = attempt.retry_state.attempt_number
                text = self._ask_once(
                    method, path, call, body, headers, recover if number > 1 else lambda _: None
                )
                return _read(text, call, read) if text else {}
        raise AssertionError("the last attempt raises")

    def _ask_once(
        self,
        method: str,
        path: str,
        call: Call,
        body: Object | None,
        headers: Mapping[str, str] | None,
        recover: Callable[[int], Object | None],
        *,
        is_renewed: bool = False,
    ) -> str:
        host = self._api.configuration.host
        sent = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            request = self._api.param_serialize(
                method, path, header_params=sent | dict(headers or {}), body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            response = self._api.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            status, text = response.status, response.read().decode()
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in _reason(error):  # which no time mends
                raise ClusterError(
                    f"server={host}: its certificate is not trusted ({_reason(error)}); correct "
                    "the server and certificate-authority of the kubeconfig, or fetch it again"
                ) from error
            # An API server that is there waits for the service for as long as this client does.
            if call.kind is SERVICE_PROXY and isinstance(
                error, urllib3.exceptions.ReadTimeoutError
            ):
                raise UnreachableError(no_answer(call, _reason(error))) from error
            raise UnreachableError(
                f"server={host}: the API server does not answer ({_reason(error)}); check that the "
                "cluster runs and that this machine reaches it"
            ) from error
        if status == 401 and not is_renewed:
            # The client keeps a token for ever, also one whose file has another by now.
            self._api, _ = _connect(self._context)
            return self._ask_once(method, path, call, body, headers, recover, is_renewed=True)
        if status in _MAY_PASS:
            raise UnreachableError(explain(status, text, call))
        if status >= 400:
            if (recovered := recover(status)) is not None:
                return json.dumps(recovered)
            refusal = NotFoundError if status == 404 else ClusterError
            raise refusal(explain(status, text, call, self._neighbours(status, call)))
        return text

    def _neighbours(self, status: int, call: Call) -> list[str] | None:
        """Return the names of the existing objects when one does not exist."""
        if status != 404 or not call.name or call.kind is SERVICE_PROXY:
            return None
        found: list[str] | None = None
        for kind in call.others:
            with suppress(ClusterError):
                found = [*(found or []), *(name_of(item) for item in self.find_all(kind))]
        return found


def _read(text: str, call: Call, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise ClusterError(not_kubernetes(call, text)) from error


def _connect(context: str | None) -> tuple[client.ApiClient, str | None]:
    """Return a client with the credentials of now, and the namespace that comes with them.

    Raises:
        ConfigError: There is no kubeconfig, or it has no such context.
    """
    settings = client.Configuration()
    settings.retries = False  # urllib3 would retry silently
    try:
        own = _sign_in(settings, context)
    except _BROKEN_FILE as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"context={context or 'current'}: the kubeconfig cannot be used ({reason}); set "
            "KUBECONFIG, or name a context with --context"
        ) from error
    return client.ApiClient(configuration=settings), own


def _sign_in(settings: client.Configuration, context: str | None) -> str | None:
    """Fill in server and credentials, and return the namespace that comes with them, if any."""
    file = os.environ.get("KUBECONFIG") or None  # the client looks only when it is imported
    if is_in_pod():
        config.load_incluster_config(client_configuration=settings)
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip()
    config.load_kube_config(file, context=context, client_configuration=settings)
    merged = KubeConfigMerger(file or KUBE_CONFIG_DEFAULT_LOCATION).config
    chosen = merged["contexts"].get_with_name(context or merged["current-context"])
    namespace: str | None = chosen["context"].value.get("namespace")
    return namespace


def is_in_pod() -> bool:
    """Return whether this is a pod without a kubeconfig, which has a service account instead."""
    has_file = bool(os.environ.get("KUBECONFIG")) or Path("~/.kube/config").expanduser().exists()
    return "KUBERNETES_SERVICE_HOST" in os.environ and not has_file


def _reason(error: Exception) -> str:
    """Return the root cause below the layers of urllib3, without addresses of objects."""
    reason = getattr(error, "reason", None) or error
    text = " ".join(str(reason).split())
    return text.rpartition(">: ")[2] or type(reason).__name__
