"""Jobs whose job server goes away while they run: Beam's own, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time

from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study


def test_a_job_server_that_goes_away_is_told_in_a_line(serve, tmp_path):
    make_study(tmp_path / "source", instances=300)
    # So slowly that the job is still running when it loses its server.
    server = serve(tmp_path / "source", faults=[fault("drip", path="/series/[0-9.]+$", count=8192)])
    port = tmp_path / "port"
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port_file", port]
    job_server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not port.exists() or not port.read_text():
            assert job_server.poll() is None
            time.sleep(0.05)
        ends = ["--source", server.url, "--destination", tmp_path / "copy"]
        runner = ["--runner=PortableRunner", f"--job_endpoint=localhost:{port.read_text()}"]
        job = subprocess.Popen(
            [sys.executable, "-m", "pipelines.transfer", *ends, *runner, "--environment_type=LOOPBACK"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not any(record.path.rpartition("/")[0].endswith("/series") for record in server.records):
            assert job.poll() is None, job.communicate()
            time.sleep(0.05)
    finally:
        job_server.kill()
        job_server.wait()
    out, said = job.communicate(timeout=120)
    assert (job.returncode, out) == (1, "")
    assert "wait_until_finish_read" not in said
    assert "\ntransfer: the job server does not answer any more (" in said
    assert "and the job may go on without it; there is no summary" in said
