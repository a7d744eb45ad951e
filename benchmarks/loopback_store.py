"""An S3 server on the loopback (moto), behind a link with latency, in processes of their own."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.latency_proxy import COUNTS
from pipeline.errors import UserError

BUCKET = "bench"
_MOTO = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class LoopbackStore:
    """A bucket `BUCKET` on the loopback.

    Attributes:
        port: The port of the link to the server.
        direct_port: The port of the server itself, without the link.
    """

    port: int
    direct_port: int

    def environment(self, *, direct: bool = False) -> dict[str, str]:
        """Return the variables by which S3 clients find the store through the link."""
        url = f"http://127.0.0.1:{self.direct_port if direct else self.port}"
        return {
            "AWS_ENDPOINT_URL": url,
            "S3_ENDPOINT_URL": url,  # mosaicml-streaming's
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def counts(self) -> tuple[int, int]:
        """Return the requests and the bytes of bodies since the last call."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{COUNTS}") as answer:
            found = json.load(answer)
        return found["requests"], found["bytes"]

    def upload(self, folder: Path, prefix: str) -> None:
        """Copy a folder into the bucket, past the link."""
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.direct_port}",
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
            region_name="us-east-1",
        )
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")


@contextlib.contextmanager
def loopback_store(latency: float, megabytes_per_second: float) -> Iterator[LoopbackStore]:
    """Serve an empty bucket while the `with` block lasts.

    Args:
        latency: The seconds that are added to each request.
        megabytes_per_second: The speed of the link in 10^6 bytes per second; 0 is without limit.

    Raises:
        UserError: moto is not installed.
    """
    if importlib.util.find_spec("moto") is None:
        raise UserError(
            "moto, the S3 server, is not installed; pip install 'perceiver-pipeline[bench]'"
        )
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(child([sys.executable, "-c", _MOTO]))
        port = stack.enter_context(child(proxy_command(server, latency, megabytes_per_second)))
        store = LoopbackStore(port, server)
        _create_bucket(store)
        yield store


def proxy_command(server_port: int, latency: float, megabytes_per_second: float) -> list[str]:
    """Return the command of a link in front of a server; see `loopback_store`."""
    link = {
        "server_port": server_port,
        "latency": latency,
        "bytes_per_second": megabytes_per_second * 1e6,
    }
    script = str(Path(__file__).with_name("latency_proxy.py"))
    return [sys.executable, "-P", script, json.dumps(link)]


def _create_bucket(store: LoopbackStore) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{store.direct_port}/{BUCKET}", method="PUT")
    with urllib.request.urlopen(request):
        pass


@contextlib.contextmanager
def child(command: list[str]) -> Iterator[int]:
    """Run a server that prints its port and ends with its standard input.

    Args:
        command: The command of the server.

    Yields:
        The port.

    Raises:
        UserError: The server did not print a port.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdin and process.stdout
    try:
        line = process.stdout.readline()
        if not line.strip().isdecimal():
            raise UserError(f"{command[0]}: a server of the benchmark did not start")
        yield int(line)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
