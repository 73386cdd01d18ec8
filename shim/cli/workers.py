"""The processes of ``osgprod serve --workers N``, their replacement at a reload, and their end with the first one."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from socket import socket

import uvicorn
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from shim.local import embedded

_log = logging.getLogger("uvicorn.error")
_ENDS = (signal.SIGTERM, signal.SIGINT)


class Config(uvicorn.Config):
    """uvicorn's, whose processes end with the first one. When that was killed, they went on, and held the port."""

    def load(self) -> None:
        """Make the application; called in each process that serves."""
        first = multiprocessing.parent_process()
        if first is not None:
            embedded.end_with_parent(signal.SIGTERM)
            if os.getppid() != first.pid:  # it ended before
                os.kill(os.getpid(), signal.SIGTERM)
        super().load()


class Workers(Multiprocess):
    """uvicorn's processes. A reload (SIGHUP) is tried until each old process is replaced; uvicorn tries once.

    Parameters
    ----------
    config : uvicorn.Config
        Of the server.
    sockets : list of socket
        On which the processes listen.
    start_s : float
        How long a new process may take until it serves [s]; after each failure twice as long.
    most_start_s : float
        The longest of these times [s].
    again_s : float
        Time between two tries [s].
    """

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket],
        start_s: float,
        most_start_s: float,
        again_s: float,
    ) -> None:
        super().__init__(config, sockets)
        self._first_start_s, self._most_start_s, self._again_s = start_s, most_start_s, again_s
        self._start_s, self._again_at = start_s, 0.0
        self._former: list[Process] = []  # those that a reload has to replace

    def restart_all(self) -> None:
        """Replace each process; called at SIGHUP."""
        self._former, self._start_s = list(self.processes), self._first_start_s
        self._replace_former()

    def keep_subprocess_alive(self) -> None:
        """Replace processes that died, and those that a reload has left; called twice a second."""
        super().keep_subprocess_alive()
        if self._former and not self.should_exit.is_set() and time.monotonic() >= self._again_at:
            self._replace_former()

    def _replace_former(self) -> None:
        for former in self._former:
            if former not in self.processes:  # it died, and has been replaced
                continue
            process = Process(self.config, self.sockets)
            process.start()
            if not self._serves(process):
                process.kill()
                process.join()
                if not self._must_end():
                    _log.error(
                        f"New process [{process.pid}] did not serve within {self._start_s:.0f} s;"
                        f" [{former.pid}] goes on, and the reload is tried again in {self._again_s:.0f} s."
                    )
                self._start_s = min(2 * self._start_s, self._most_start_s)
                self._again_at = time.monotonic() + self._again_s
                return
            former.terminate()
            former.join()
            self.processes[self.processes.index(former)] = process
        self._former = []

    def _serves(self, process: Process) -> bool:
        """Wait until a new process serves; False: it takes too long, it ended, or the server shall end."""
        end = time.monotonic() + self._start_s
        while not self._must_end() and process.process.is_alive() and time.monotonic() < end:
            if process.wait_until_ready(min(1.0, self._start_s), self.should_exit):
                return True
        return False

    def _must_end(self) -> bool:
        return self.should_exit.is_set() or any(number in self.signal_queue for number in _ENDS)
