"""Runs programs that import uproot, which takes half a second of a processor, in forks of one process that has it.

    warm.py SOCKET OWNER                   returns, and listens there until the socket, or the process OWNER, is gone
    warm.py SOCKET PROGRAM ARGUMENT...     runs a program, as `python PROGRAM ARGUMENT...` would

The first one imports uproot when it is asked for the first time. The second one is started with -I -S, and imports
little. Its program has its files, folder, environment and arguments, and ends with it.
"""

from __future__ import annotations

import os
import socket
import sys


def listen(path: str, owner: str) -> None:
    import select
    import signal

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        if os.fork():
            return
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while os.path.exists(path) and os.path.exists(f"/proc/{owner}"):  # noqa: PTH110
            if not select.select([listener], [], [], 0.1)[0]:
                continue
            client, _ = listener.accept()
            import uproot  # noqa: F401

            with client:
                if os.fork() == 0:
                    listener.close()
                    _run(client)


def _run(client: socket.socket) -> None:
    import contextlib
    import runpy
    import signal
    import threading
    import traceback

    status = 1
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        message, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        folder, count, *texts = os.fsdecode(message).split("\0")
        sys.argv, variables = texts[: int(count)], texts[int(count) :]
        threading.Thread(target=_end_with, args=[client], daemon=True).start()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variable.split("=", 1) for variable in variables)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            client.sendall(bytes([status]))
        os._exit(0)


def _end_with(client: socket.socket) -> None:
    import signal

    client.recv(1)  # nothing ever comes, until the client is gone
    os.kill(os.getpid(), signal.SIGKILL)


def ask(path: str, arguments: list[str]) -> int:
    """The exit code of the program; 255 when it ended without one."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        texts = [os.getcwd(), str(len(arguments)), *arguments]  # noqa: PTH109  # pathlib takes 20 ms
        texts += [f"{name}={value}" for name, value in os.environ.items()]
        message = os.fsencode("\0".join(texts))
        socket.send_fds(server, [message], [0, 1, 2])
        status = server.recv(1)
    return status[0] if status else 255


if __name__ == "__main__":
    if sys.argv[2].isdecimal():
        listen(*sys.argv[1:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
