"""Beam's job server with Spark inside, on this machine: ``local[2]``, for a smoke test.

One jar from Maven Central holds Spark and the job server. The workers are threads of the process that runs a pipeline.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.runners.jars import Program, java

PROGRAM = Program(
    name="spark",
    main="org.apache.beam.runners.spark.SparkJobServerDriver",
    artifacts=(
        "org.apache.beam:beam-runners-spark-3:2.70.0",
        "org.apache.beam:beam-sdks-java-core:2.70.0",
        "org.apache.spark:spark-core_2.12:3.5.0",
        "org.apache.spark:spark-streaming_2.12:3.5.0",
        "org.apache.spark:spark-sql_2.12:3.5.0",
    ),
    # The one of 2.70.0 is not to be had everywhere.
    pinned=("org.apache.beam:beam-runners-java-job-service:2.65.0",),
)
STARTING_SECONDS = 180
STOPPING_SECONDS = 60

_OPENED = (
    "java.lang java.lang.invoke java.lang.reflect java.io java.net java.nio java.util java.util.concurrent "
    "java.util.concurrent.atomic sun.nio.ch sun.nio.cs sun.security.action sun.util.calendar"
)


class SparkServer:
    """A job server that runs pipelines on Spark in its own process, as a context manager."""

    def __enter__(self) -> SparkServer:
        jar = PROGRAM.jar()
        self.folder = Path(tempfile.mkdtemp(prefix="dicomweb_io-spark-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED.split()]
        command = [java(), "-Xmx1g", "-XX:-UsePerfData", *opened, f"-Djava.io.tmpdir={self.folder}"]
        command += ["-Dspark.ui.enabled=false", "-cp", str(jar), PROGRAM.main, "--spark-master-url=local[2]"]
        command += ["--job-host=127.0.0.1", f"--job-port={self._port}", "--artifact-port=0", "--expansion-port=-1"]
        command += [f"--artifacts-dir={self.folder / 'artifacts'}"]
        self.log = self.folder / "log"
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_DIRS": str(self.folder)},
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _wait(self) -> None:
        end = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        said = self.log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"Beam's job server for Spark did not come up; its log ends with:\n{said}")

    def options(self, *more: str) -> list[str]:
        """The arguments that run a pipeline there, and `more`."""
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=127.0.0.1:{self._port}",
            "--environment_type=LOOPBACK",
            *more,
        ]

    def stop(self) -> None:
        """Ends the process and removes its folder."""
        self._process.terminate()
        try:
            self._process.wait(STOPPING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
