"""`perceiver serve`: a registered model behind an HTTP endpoint, until it is stopped."""

import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.errors import ClusterError
from cluster.placement import Place, missing_for
from cluster.ray_failures import root_error
from cluster.ray_session import ray_session
from pipeline.errors import UserError
from pipeline.registry.predict import open_model, weights_of
from pipeline.registry.registration import champion_of
from pipeline.runs.console import Console
from shards.redaction import shortened

NAME = "perceiver"
NICENESS = "RAY_worker_niceness"
POLL_SECONDS = 1.0
_ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served.

    Attributes:
        host: The address to listen on.
        port: The port.
        replicas: The number of copies of the model.
        num_gpus: The GPUs of each; a share of one, too.
        max_batch: The most inputs that are answered together.
        max_body_mib: The largest body of a request.
        timeout: The most seconds for a request.
    """

    host: str
    port: int
    replicas: int
    num_gpus: float
    max_batch: int
    max_body_mib: int
    timeout: float


def serve_model(
    mlflow_client: Any,
    model_uri: str,
    console: Console,
    options: ServeOptions,
    *,
    tracking_uri: str,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Serve a model until SIGINT, SIGTERM or SIGHUP comes, and end all that was started.

    Args:
        mlflow_client: The client of the tracking server.
        model_uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN/model`. An alias is
            looked up once, so that all replicas serve one version.
        console: The console, which says when the endpoint answers.
        options: How it is served.
        tracking_uri: The tracking server.
        until: Whether to stop, asked every second.

    Raises:
        UserError: There is no such model, or the port is taken.
        ClusterError: The machine has no room for the replicas, or they do not start.
    """
    _refuse_options(options)
    _refuse_taken(options)
    pinned = pinned_uri(mlflow_client, model_uri)
    model = weights_of(open_model(mlflow_client, pinned))
    try:
        from ray import serve
        from ray.serve.config import HTTPOptions

        from pipeline.serving.app import Served
        from pipeline.serving.endpoint import Endpoint, Model
    except ImportError as error:
        raise UserError(
            f"Ray Serve is not installed ({error}): pip install 'perceiver-pipeline[serve]'"
        ) from None
    # Ray's workers give way to all other processes, and an endpoint should not.
    os.environ[NICENESS] = "0"
    with ray_session(None):
        place = Place({"CPU": 1.0, **({"GPU": options.num_gpus} if options.num_gpus else {})})
        if missing := missing_for(place, options.replicas, "replica"):
            raise ClusterError(f"serving {missing}; lower --replicas or --num-gpus")
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options=HTTPOptions(
                    host=options.host,
                    port=options.port,
                    request_timeout_s=2 * options.timeout + 5,  # the endpoint's own ends first
                ),
            )
            replicas = Model.options(  # type: ignore[attr-defined]  # serve.deployment
                num_replicas=options.replicas,
                max_ongoing_requests=4 * options.max_batch,
                ray_actor_options={"num_cpus": 1, "num_gpus": options.num_gpus},
            )
            served = Served(
                model_uri=pinned,
                tracking_uri=tracking_uri,
                max_body=options.max_body_mib * 1024**2,
                seconds=options.timeout,
            )
            no_cpus = {"num_cpus": 0}
            endpoint = Endpoint.options(ray_actor_options=no_cpus).bind(  # type: ignore[attr-defined]  # the same
                served, replicas.bind(model, options.max_batch)
            )
            try:
                serve.run(endpoint, name=NAME, route_prefix="/")
            except Exception as error:  # Ray raises many kinds
                reason = shortened(" ".join(str(root_error(error)).split()), 300)
                raise ClusterError(f"{pinned}: cannot be served: {reason}") from error
            address = f"http://{_in_url(options.host)}:{options.port}"
            console.say(
                f"{pinned} answers at {address}/invocations, and shows a page at {address}/ "
                "(Ctrl-C ends it)"
            )
            console.result({"model_uri": pinned, "address": address})
            while not until():
                time.sleep(POLL_SECONDS)
        finally:
            serve.shutdown()


def pinned_uri(mlflow_client: Any, model_uri: str) -> str:
    """Return the URI of the version that an alias names now, and any other URI unchanged.

    Raises:
        UserError: There is no such alias.
    """
    match = _ALIAS.fullmatch(model_uri)
    if match is None:
        return model_uri
    version = champion_of(mlflow_client, match["name"], match["alias"])
    if version is None:
        raise UserError(f"{model_uri}: there is no model or alias of this name")
    return f"models:/{match['name']}/{version.version}"


def _refuse_options(options: ServeOptions) -> None:
    if not 0 < options.port < 65536:
        raise UserError(f"--port {options.port}: give 1 to 65535")
    if not 0 <= options.num_gpus < 1024:
        raise UserError(f"--num-gpus {options.num_gpus}: give 0, a share of a GPU, or some")
    if options.num_gpus > 1 and options.num_gpus != int(options.num_gpus):
        raise UserError(f"--num-gpus {options.num_gpus}: above 1, give a whole number")
    if not 1 <= options.timeout <= 86400:
        raise UserError(f"--timeout {options.timeout}: give 1 to 86400 seconds")


def _refuse_taken(options: ServeOptions) -> None:
    """Refuse an address that cannot be listened on, before anything starts."""
    where = f"--host {options.host} --port {options.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(f"{where}: cannot be listened on: {error.strerror or error}") from None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
