"""An S3 server on the loopback."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

BUCKET = "runs"


def point_to_loopback() -> int:
    """Choose a port, and have this process and its children look for S3 there and nowhere else."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "not-in-any-record",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return port


@contextlib.contextmanager
def s3_server(port: int) -> Iterator[str]:
    """Serve one empty bucket from memory. Yield its URL."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    finally:
        server.stop()
