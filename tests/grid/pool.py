"""A real HTCondor pool on this machine: Debian 13 in a folder, run in Linux namespaces that end with the pool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from tests.grid.parts import apt, why_missing
from tests.support import CHECKOUT, PATIENCE_S, free_port

RELEASE = "trixie"  # Debian 12 has no HTCondor
PACKAGES = ("condor", "curl", "procps", "python3-minimal")
CACHE = Path(os.environ.get("OSGPROD_GRID_CACHE", "/var/cache/osgprod-grid"))
SLOTS = 16
USER = "physicist"
CONFIG = """\
include : /etc/condor/condor_config
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
USE_SHARED_PORT = True
SHARED_PORT_PORT = {port}
COLLECTOR_HOST = $(CONDOR_HOST):{port}
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD SHARED_PORT
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, CLAIMTOBE
SEC_DEFAULT_ENCRYPTION = OPTIONAL
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
TRUST_UID_DOMAIN = True
UID_DOMAIN = test
FILESYSTEM_DOMAIN = test
BASE_CGROUP =
NUM_CPUS = {slots}
MEMORY = 65536
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 1
NEGOTIATOR_MIN_INTERVAL = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
PERIODIC_EXPR_INTERVAL = 2
UPDATE_INTERVAL = 5
MACHINE_RESOURCE_NAMES =
STARTD_CRON_JOBLIST =
GLIDEIN_Site = "Here"
STARTD_ATTRS = GLIDEIN_Site
RUNBENCHMARKS = False
MAX_CONCURRENT_DOWNLOADS = 50
MAX_CONCURRENT_UPLOADS = 50
JOB_START_COUNT = 50
use POLICY : HOLD_IF_MEMORY_EXCEEDED
STARTER_UPDATE_INTERVAL = 5
STARTER_INITIAL_UPDATE_INTERVAL = 2
FILETRANSFER_PLUGINS = /srv/toy_plugin
# A starter that can't send a job's output keeps its slot so long, waiting for a shadow that is gone (measured with
# 23.9): with the 600 s by default a job that is released every 6 s takes all slots.
MachineMaxVacateTime = 10
"""
# A transfer plugin of HTCondor for toy:///PATH, which is /srv/toy/PATH.
PLUGIN = r"""#!/usr/bin/python3
import os, re, shutil, sys
if "-classad" in sys.argv:
    print('MultipleFileSupport = true\nPluginVersion = "1"\nPluginType = "FileTransfer"')
    print('ProtocolVersion = 2\nSupportedMethods = "toy"')
    sys.exit()
request, answer = (sys.argv[sys.argv.index(name) + 1] for name in ("-infile", "-outfile"))
done = []
for ad in re.findall(r"\[(.*?)\]", open(request).read(), re.S):
    values = dict(re.findall(r'(\w+)\s*=\s*"([^"]*)"', ad))
    there, here = "/srv/toy/" + values["Url"].partition("://")[2].lstrip("/"), values["LocalFileName"]
    os.makedirs(os.path.dirname(there), exist_ok=True)
    shutil.copy(*((here, there) if "-upload" in sys.argv else (there, here)))
    done.append('[ TransferUrl = "%s"; TransferSuccess = true; TransferFileName = "%s"; TransferTotalBytes = %d ]'
                % (values["Url"], here, os.path.getsize(there)))
open(answer, "w").write("\n".join(done))
"""
# The environment of the pool's master, which ends with it.
ENTER = """\
set -e
mount --make-rprivate /
root="$1" srv="$2"
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$srv" "$root/srv"
mkdir -p "$root"/var/{lib,spool,log}/condor  # some packages leave that to systemd
for folder in /var/lib/condor /var/spool/condor /var/log/condor /run /tmp; do mount -t tmpfs none "$root$folder"; done
chmod 1777 "$root/tmp"
exec chroot "$root" /bin/bash -e -c '
  mkdir -p /run/condor /run/lock/condor /var/lib/condor/spool /var/lib/condor/execute
  chown -R condor:condor /run/condor /run/lock /var/log/condor /var/lib/condor /var/spool/condor
  chmod 755 /var/lib/condor /var/lib/condor/execute
  ln -sfn /srv/hd_root /usr/local/bin/hd_root
  export CONDOR_CONFIG=/srv/condor_config
  condor_master -f & # this shell is the first process: it dies with its parent, since it never changes its user
  wait'
"""
# The only stand-in: it reads each event of the slice and writes down its number.
HD_ROOT = """\
#!/bin/bash
slices=()
for argument; do [[ $argument == -P* ]] || slices+=("$argument"); done
exec python3 /srv/demo_recon.py "${slices[@]}"
"""
RUNNING, HELD, IDLE = 2, 5, 1
# Of a job, in a failure's message: what decides whether and where it runs.
SHOWN = [
    "ProcId",
    "JobStatus",
    "HoldReasonCode",
    "HoldReasonSubCode",
    "HoldReason",
    "NumHolds",
    "NumJobStarts",
    "NumShadowStarts",
    "NumJobMatches",
    "ExitCode",
    "MachineAttrMachine0",
    "JobCurrentStartDate",
    "JobCurrentStartExecutingDate",
    "EnteredCurrentStatus",
    "LastMatchTime",
    "LastRejMatchTime",
    "LastRejMatchReason",
    "AutoClusterId",
    "AutoClusterAttrs",
    "Requirements",
]


def build() -> str:
    """Makes the folder with Debian 13 and HTCondor, unless it exists; returns why it can't, empty = it exists."""
    root = CACHE / RELEASE
    if os.geteuid() != 0:
        return "a pool in a folder with Debian and in namespaces takes root"
    if (root / "complete").exists():
        return ""
    reason = why_missing("debootstrap")
    if reason:
        return reason
    mirror = _mirror()
    if not mirror:
        return "apt's configuration names no mirror of Debian"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", RELEASE, str(root), mirror],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        return f"debootstrap of {RELEASE} failed: {(done.stdout.strip().splitlines() or ['?'])[-1]}"
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # no service is to start
    policy.chmod(0o755)
    refused = apt(["install", "-q", "-y", "--no-install-recommends", *PACKAGES], ("chroot", str(root)))
    if refused:
        return f"apt-get install {' '.join(PACKAGES)} in {RELEASE} was refused: {refused}"
    subprocess.run(["chroot", str(root), "useradd", "-m", USER], check=True)
    (root / "complete").touch()
    return ""


def newer(program: str, package: str) -> list[str]:
    """The command of a program of that Debian, run outside of its folder with the libraries inside.

    Parameters
    ----------
    program : str
        Its path there.
    package : str
        What has it; installed when it is missing.
    """
    root = CACHE / RELEASE
    reason = build()
    if not reason and not (root / program.lstrip("/")).exists():
        reason = apt(["install", "-q", "-y", "--no-install-recommends", package], ("chroot", str(root)))
    if reason:
        pytest.skip(reason)
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    return [f"{root}/lib64/ld-linux-x86-64.so.2", "--library-path", libraries, f"{root}{program}"]


def _mirror() -> str:
    """Debian's mirror, as apt's own configuration has it."""
    codename = ""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            codename = line.partition("=")[2].strip('"')
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    )
    mirrors = [line.split()[1] for line in done.stdout.splitlines() if line.split()[:1] == [codename]]
    return mirrors[0] if mirrors else ""


class Pool:
    """One machine with many slots. ``srv`` is /srv inside: the submit folder of its user, and what the jobs need."""

    def __init__(self) -> None:
        self._root = CACHE / RELEASE
        self.srv = Path(tempfile.mkdtemp(prefix="osgprod-pool-", dir="/tmp"))
        self.toy = self.srv / "toy"  # where its transfer plugin puts files
        self._master: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        self.srv.chmod(0o755)
        (self.srv / "condor_config").write_text(CONFIG.format(port=free_port(), slots=SLOTS))
        (self.srv / "hd_root").write_text(HD_ROOT)
        (self.srv / "hd_root").chmod(0o755)
        (self.srv / "toy_plugin").write_text(PLUGIN)
        (self.srv / "toy_plugin").chmod(0o755)
        self.toy.mkdir()
        self.toy.chmod(0o777)
        shutil.copy(CHECKOUT / "worker" / "demo_recon.py", self.srv)
        shutil.copytree(CHECKOUT / "condor", self.srv / "condor")
        self.submit_folder("home")
        with (self.srv / "master.log").open("wb") as log:
            self._master = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
                    *("/bin/bash", "-c", ENTER, "-", str(self._root), str(self.srv)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait(60, "the pool does not come up", lambda: self._is_up())
        return self

    def __exit__(self, *_: object) -> None:
        if self._master:
            # --kill-child ends the first process of the namespace, and with it all others.
            self._master.kill()
            self._master.wait()
            end = time.monotonic() + 20
            while Path(f"/proc/{self._pid}").exists() and time.monotonic() < end:
                time.sleep(0.05)
        shutil.rmtree(self.srv, ignore_errors=True)

    def _is_up(self) -> bool:
        assert self._master is not None
        assert self._master.poll() is None, (self.srv / "master.log").read_text()
        children = Path(f"/proc/{self._master.pid}/task/{self._master.pid}/children").read_text().split()
        if not children:
            return False
        self._pid = int(children[0])
        done = self.run("condor_status", "-af", "Cpus", check=False)
        return done.returncode == 0 and done.stdout.split() == [str(SLOTS)]

    def run(self, *command: str, check: bool = True, user: str = "root", cwd: str = "/srv") -> Any:
        """Runs a command inside; as the user who submits, or as root."""
        shell = f'cd {cwd} && export CONDOR_CONFIG=/srv/condor_config && exec "$@"'
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if user == USER else []
        done = subprocess.run(
            [
                *("nsenter", "-t", str(self._pid), "-m", "-p", "chroot", str(self._root)),
                *(*as_user, "/bin/bash", "-c", shell, "-", *command),
            ],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def submit_folder(self, name: str) -> Path:
        """Makes a folder to submit from; the jobs' tarballs come home to it."""
        folder = self.srv / name
        (folder / "logs").mkdir(parents=True)
        uid, gid = self._ids()
        for path in (folder, folder / "logs"):
            os.chown(path, uid, gid)
        return folder

    def _ids(self) -> tuple[int, int]:
        for line in (self._root / "etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if fields[0] == USER:
                return int(fields[2]), int(fields[3])
        raise AssertionError(f"no user {USER}")

    def submit(self, folder: str, **settings: object) -> int:
        """condor_submit of the file that ships; returns the cluster."""
        arguments = [f"{name}={value}" for name, value in settings.items()]
        command = ["condor_submit", "-terse", *arguments, "/srv/condor/osgprod.sub"]
        done = self.run(*command, user=USER, cwd=f"/srv/{folder}")
        return int(done.stdout.split(".")[0])

    def as_user(self, *command: str) -> str:
        return str(self.run(*command, user=USER).stdout)

    def jobs(self, cluster: int) -> list[dict[str, Any]]:
        """The jobs of a cluster that are in the queue."""
        return list(json.loads(self.run("condor_q", "-allusers", "-json", str(cluster)).stdout or "[]"))

    def job(self, cluster: int) -> dict[str, Any]:
        """The only job of a cluster; its last state when it has left the queue."""
        jobs = self.jobs(cluster)
        if not jobs:
            jobs = json.loads(self.run("condor_history", "-json", str(cluster)).stdout or "[]")
        return dict(jobs[0]) if jobs else {}

    def wait_for(
        self, cluster: int, what: str, is_so: Callable[[list[dict[str, Any]]], bool], timeout_s: float = 150
    ) -> None:
        self.wait(timeout_s, lambda: f"{what}: {self._show(cluster)}", lambda: is_so(self.jobs(cluster)))

    def _show(self, cluster: int) -> str:
        """What a failure needs: its jobs, their last lines, the slots, and what HTCondor says of the first of them."""
        jobs = self.jobs(cluster)
        logs = [self.srv / Path(job["Iwd"]).relative_to("/srv") / job["Err"] for job in jobs[:3]]
        ends = [log.read_text().splitlines()[-3:] for log in logs if log.exists()]
        slots = self.run("condor_status", "-af", "State", "Activity", check=False).stdout.splitlines()
        states = [{name: job[name] for name in SHOWN if name in job} for job in jobs][:20]
        lines = [
            f"{len(jobs)} jobs at {int(time.time())}: {states}; they said {ends}; slots: {dict(Counter(slots))}"
        ]
        job = f"{cluster}.{jobs[0]['ProcId']}" if jobs else f"{cluster}.0"
        lines += ["--- condor_q -better-analyze", self._said("condor_q", "-allusers", "-better-analyze", job)]
        for name in ("SchedLog", "ShadowLog", "StartLog"):
            said = self._said("grep", "-wF", job, f"/var/log/condor/{name}")
            lines += [f"--- {name} of {job}", *said.splitlines()[-40:]]
        lines += ["--- end of NegotiatorLog", self._said("tail", "-n", "25", "/var/log/condor/NegotiatorLog")]
        return "\n".join(lines)

    def _said(self, *command: str) -> str:
        done = self.run(*command, check=False)
        return str(done.stdout + done.stderr)

    def kill_inside(self, name: str, process: str) -> int:
        """Kills one process inside, by program name and a part of its command line; returns how many there were."""
        done = self.run("pgrep", "-f", f"{name}.*{process}", check=False)
        pids = done.stdout.split()
        if pids:
            self.run("kill", f"-{int(signal.SIGKILL)}", pids[0], check=False)
        return len(pids)

    @staticmethod
    def wait(timeout_s: float, what: str | Callable[[], str], is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + max(timeout_s, PATIENCE_S)
        while not is_so():
            assert time.monotonic() < end, what() if callable(what) else what
            time.sleep(0.3)
