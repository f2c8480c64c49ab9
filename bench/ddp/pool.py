"""The ranks of a run, one process each, and the jobs that they do together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PORT = 29500
START = 120  # seconds until ranks have found each other


class Failed(RuntimeError):
    """A job that a rank could not do, or did not do in time."""


class Pool:
    """n ranks on links (see `link`). A context manager: the processes end with it.

    Ranks stay from job to job. After a failure they are ended, and the next job starts new ones.
    """

    def __init__(self, links):
        self.links, self.processes = links, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, job: str, timeout: float, **options) -> list:
        """What each rank returns for the job. Raises Failed, with the reason of the first rank that gives one."""
        if not self.processes:
            self._start()
        try:
            for rank, process in enumerate(self.processes):
                try:
                    process.stdin.write(json.dumps({"job": job} | options) + "\n")
                    process.stdin.flush()
                except OSError:
                    raise Failed(f"rank {rank} has died: {self._last_words()}") from None
            return self._answers(timeout)
        except BaseException:
            self.close()
            raise

    def _start(self):
        self.log = tempfile.TemporaryFile("w+")
        port = PORT if self.links.shaped else _free_port()
        address = f"tcp://{self.links.address(0)}:{port}"
        environment = os.environ | {"GLOO_SOCKET_IFNAME": self.links.interface, "PYTHONUNBUFFERED": "1"}
        environment["CUDA_VISIBLE_DEVICES"] = ""  # torch's PowerSGD takes a GPU where it sees one, and models have none
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        n = self.links.n
        for rank in range(n):
            worker = [sys.executable, "-m", "bench.ddp.worker", str(rank), str(n), self.links.interface, address]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True}
            command = [*self.links.command(rank), *worker]
            self.processes.append(subprocess.Popen(command, env=environment, **pipes))
        try:
            self._answers(START)
        except BaseException:
            self.close()
            raise

    def _answers(self, timeout):
        with ThreadPoolExecutor(len(self.processes)) as readers:
            answers = [readers.submit(self._answer, rank) for rank in range(len(self.processes))]
            try:
                done, late = wait(answers, timeout, FIRST_EXCEPTION)
                for answer in done:
                    answer.result()
                if late:
                    ranks = ", ".join(str(rank) for rank, answer in enumerate(answers) if answer in late)
                    raise Failed(f"no answer of rank {ranks} after {timeout:.0f} s")
            except BaseException:
                self._kill()  # which ends the readers, too
                raise
            return [answer.result() for answer in answers]

    def _answer(self, rank):
        line = self.processes[rank].stdout.readline()
        if not line:
            raise Failed(f"rank {rank} has died: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"rank {rank}: {answer['error']}")
        return answer["result"]

    def _last_words(self):
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else "without a word"

    def _kill(self):
        for process in self.processes:
            process.kill()

    def close(self):
        """End the processes."""
        self._kill()
        for process in self.processes:
            process.wait()
            with suppress(OSError):  # what it has not read
                process.stdin.close()
            process.stdout.close()
        if self.processes:
            self.log.close()
        self.processes = []


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
