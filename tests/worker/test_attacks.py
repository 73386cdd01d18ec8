"""What nodes do to the job scripts: odd environments, kills at the worst moment, clocks that jump."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.grid.mounts import small_file_system
from tests.support import CHECKOUT, PATIENCE_S, World, wait_until
from tests.worker import fetching
from tests.worker.conftest import EXEC, SHIPPED, Node, names, report_of, slow, state, wait_for_end
from tests.worker.fetching import NODE_FAULT, Slice
from tests.worker.site import Site
from tests.worker.test_exec import DONE
from tests.worker.test_merge import Merge, merge, with_uproot

__all__ = ["merge", "with_uproot"]  # fixtures

LATER = 30
KILLED_ONCE = '#!/bin/bash\n[[ -e "$ONCE" ]] || { touch "$ONCE"; kill -KILL $$; };'
KILLED = 137


def call(commands: str, **environment: str) -> str:
    """Calls functions of osgprod_exec.sh, which is sourced; returns their output."""
    done = subprocess.run(
        ["/bin/bash", "-pc", f"source {EXEC}\n{commands}"],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- kills ---------------------------------------------------------------------------------------------------


def test_child_of_a_job_that_is_killed_before_it_reads_does_not_wait_for_ever(folder: Path) -> None:
    """The job is killed right after it has begun a child, which then opens the pipe that nobody will read."""
    die = 'set() { builtin set "$@"; [[ $1 != +m ]] || kill -KILL $$; }'
    job = subprocess.Popen(
        ["/bin/bash", "-c", f"source {EXEC}\nmake_scratch\n{die}\ncapture sleep 0"],
        env={"PATH": "/usr/bin:/bin", "_CONDOR_SCRATCH_DIR": str(folder)},
        start_new_session=True,
    )
    assert job.wait() == -signal.SIGKILL
    wait_for_end(job.pid)


def test_heartbeats_end_though_the_signal_that_asks_for_it_is_lost(folder: Path) -> None:
    """bash forgets one that comes right after the fork. The job would wait, and send heartbeats, for ever."""
    loses = "send_heartbeats() { trap 'trap \"exit 0\" TERM' TERM; touch $scratch/begun; while :; do pause 1; done; }"
    begun = "until [[ -e $scratch/begun ]]; do pause 0.01; done"
    script = f"make_scratch; {loses}\nstart_heartbeats 60 ''; {begun}; stop_heartbeats"
    call(script, _CONDOR_SCRATCH_DIR=str(folder))


def test_job_that_can_start_no_process_any_more_ends_as_a_node_fault(folder: Path) -> None:
    """bash ends with 254 then. To remove the job's folder would take a process."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"source {EXEC}\nmake_scratch; trap cleanup EXIT; exit 254"],
        env={"PATH": "/usr/bin:/bin", "_CONDOR_SCRATCH_DIR": str(folder)},
    )
    assert done.returncode == 20
    assert len(list(folder.iterdir())) == 1, "nothing tried to remove it"


def test_client_of_storage_may_say_more_than_is_kept(folder: Path) -> None:
    said = call(
        "make_scratch\nsend_x() { printf '%100000s\\n' x >&2; }\n"
        "storage send_x && echo $storage_error; remove_tree $scratch",
        _CONDOR_SCRATCH_DIR=str(folder),
    )
    assert said == "x\n"


def test_outputs_that_were_listed_in_part_are_not_packed_as_the_whole(folder: Path) -> None:
    """A find that is killed, once or always."""
    (folder / "bin").mkdir()
    (folder / "bin/find").write_text(
        '#!/bin/bash\n[[ -e "$TIMES/whole" ]] && exec /usr/bin/find "$@"\n'
        "printf './1\\0'; touch \"$TIMES/$NEXT\"; kill -KILL $$\n"
    )
    (folder / "bin/find").chmod(0o755)
    commands = (
        "make_scratch; mkdir -p $scratch/work; touch $scratch/work/{1,2,3} $scratch/work.log; code=0\n"
        'pack "" $scratch/t.tar.gz || code=$?; echo $code $packed; /bin/rm -r $scratch'
    )
    environment = {"_CONDOR_SCRATCH_DIR": str(folder), "TIMES": str(folder)}
    path = f"{folder}/bin:/usr/bin:/bin"
    assert call(commands, PATH=path, NEXT="again", **environment) == "137\n"
    assert call(commands, PATH=path, NEXT="whole", **environment) == "0 3\n"


def test_no_script_reads_a_list_that_may_be_cut_off() -> None:
    """Nobody sees how the program of a <(...) ended. Its list says where it ends: curl's by the URL."""
    for script in SHIPPED:
        lines = (CHECKOUT / script).read_text().splitlines()
        for at, line in enumerate(lines):
            if "< <(" in line and not line.startswith("set +o posix"):
                end = next(
                    n for n in range(at, len(lines)) if lines[n].strip().startswith(")") or "(list" in line
                )
                assert "list_outputs" in line or "curl_option url " in lines[end - 1], f"{script}:{at + 1}"


@pytest.mark.parametrize("option", ["data-urlencode", "url"])
def test_request_that_is_cut_off_is_not_sent(folder: Path, site: Site, option: str) -> None:
    """A report without the outputs would be a success without them."""
    dies = f'[[ "$1" != {option} || "$2" == project=* ]] || kill -KILL $BASHPID'
    real = 'eval "real_$(declare -f curl_option)"'
    answers = call(
        f'make_scratch; {real}; curl_option() {{ {dies}; real_curl_option "$@"; }}\n'
        "OSGPROD_PROJECT=p cluster=1 process=1 TRIES=1; request workscript.exit exitcode 0; echo $http_status\n"
        "storage stored_http $OSGPROD_URL/file || echo $captured.; remove_tree $scratch",
        _CONDOR_SCRATCH_DIR=str(folder),
        OSGPROD_URL=site.url,
        BEARER_TOKEN="a.token",
    )
    assert answers == "000\n.\n"
    assert [seen.method for seen in site.seen] == ([] if option == "url" else ["HEAD"])


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (
            "header_words() { kill -KILL $BASHPID; }; check_slice /bin/bash 64 1; echo blamed",
            "75 osgprod: /bin/bash can't be read",
        ),
        (
            'http_transfer() { printf \'{"director_endpoint":"https://d"}\'; }; sort() { kill -KILL $BASHPID; }\n'
            "http_request() { http_status=307 http_head=$'HTTP/1.1 307 x\\r\\nLocation: https://c/f'; }\n"
            "places=('door osdf:///f'); ask_director || echo $word $reason >&2",
            "0 again the director was not asked: somebody has killed a program",
        ),
    ],
)
def test_killed_program_of_the_work_script_blames_no_storage(commands: str, said: str) -> None:
    code, output, log = fetching.call(commands)
    assert f"{code} {log.splitlines()[-1].split('Z ')[-1]}" == said
    assert output == ""


def test_killed_probe_of_a_disk_does_not_make_it_full(folder: Path) -> None:
    """The outputs of hours would be thrown away."""
    (folder / "bin").mkdir()
    (folder / "bin/head").write_text(f'{KILLED_ONCE} exec /usr/bin/head "$@"\n')
    (folder / "bin/head").chmod(0o755)
    code, output, log = fetching.call(
        'probe_disk .; echo "$disk_error."',
        cwd=folder,
        PATH=f"{folder}/bin:/usr/bin:/bin",
        ONCE=f"{folder}/1",
    )
    assert (code, output, (folder / "1").exists()) == (0, ".\n", True), log
    once = "printf() { [[ -e $scratch/once ]] || { : >$scratch/once; kill -KILL $BASHPID; }; }"
    commands = f"make_scratch; {once}; disk_has_room && echo $?; remove_tree $scratch"
    assert call(commands, _CONDOR_SCRATCH_DIR=str(folder)) == "0\n"


def test_killed_program_that_writes_a_slice_does_not_make_the_disk_full(slice_: Slice, folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "bin/head").write_text(f'{KILLED_ONCE} exec /usr/bin/head "$@"\n')
    (folder / "bin/head").chmod(0o755)
    code, log, seen = slice_.run(PATH=f"{folder}/bin:/usr/bin:/bin", ONCE=f"{folder}/1")
    assert (code, seen == slice_.expected, (folder / "1").exists()) == (DONE, True, True), log


def test_job_that_is_asked_to_end_ends_well_though_somebody_kills_its_programs(
    node: Node, rawdata: Path
) -> None:
    (node.folder.parent / "bin").mkdir()
    begun = node.folder.parent / "begun"
    node.program("bin/sleep", "kill -KILL $$")
    node.program("bin/rm", f'[[ -e {begun} ]] && kill -KILL $$; exec /usr/bin/rm "$@"')
    deaf = node.program("recon", f"trap '' TERM; touch {begun}; while :; do read -rt 9 <> <(:); done")
    job = node.start(1, PATH=f"{node.folder.parent}/bin:/usr/bin:/bin", OSGPROD_RECON=deaf)
    wait_until(begun.exists, "the work runs")
    job.send_signal(signal.SIGTERM)
    log, _ = job.communicate(timeout=60)
    assert job.returncode == 143, log
    assert list(node.folder.iterdir()) == [], log
    wait_for_end(job.pid)


def test_heartbeats_whose_process_somebody_kills_go_on_after_the_work(folder: Path) -> None:
    said = call(
        "make_scratch; mkdir -p $scratch/work/.osgprod\n"
        "send_heartbeats() { trap 'exit 0' TERM; echo $BASHPID >>$scratch/beats; while :; do pause 1; done; }\n"
        "echo 'until [[ -s ../beats ]]; do sleep 0.01; done; kill -KILL $(<../beats)\n"
        "while [[ -e /proc/$(<../beats) ]]; do sleep 0.01; done' >$scratch/work/.osgprod/script\n"
        "SLICES=1 MAX_LOG_BYTES=0; run_work 60 2>&1; until (($(wc -l <$scratch/beats) == 2)); do pause 0.01; done\n"
        "stop_heartbeats; echo $work_status $heartbeat_status; remove_tree $scratch",
        _CONDOR_SCRATCH_DIR=str(folder),
    )
    assert "somebody has killed the process that sends heartbeats: the lease may have expired" in said
    assert said.splitlines()[-1] == "0 0"


@pytest.mark.parametrize("jobs", [32, *slow(2400)])
def test_signal_is_heard_while_bash_parses_a_substitution(folder: Path, jobs: int) -> None:
    """bash 5.2 then takes the trap's text for a part of that. In 1 of 400 cases the job ended as a node fault."""
    (folder / "script").write_text(
        f"source {EXEC}\nhear_signals\ntrap cleanup EXIT\na=3\necho begun\n"
        'while :; do text="$(backoff "$a" 1)"; done\n'
    )
    command = ["/bin/bash", "-p", folder / "script"]
    for n in range(jobs // 8):
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)
        ]
        for job in running:
            assert job.stdout and job.stdout.readline() == b"begun\n"
        time.sleep(n % 10 / 1000)  # not always at the same place
        for job in running:
            job.send_signal(signal.SIGTERM)
        logs = [job.communicate(timeout=PATIENCE_S)[1] for job in running]
        assert [job.returncode for job in running] == [143] * 8, logs


def test_trap_of_a_signal_is_heard_while_bash_parses_a_substitution() -> None:
    """By its second line, see hear."""
    for script in SHIPPED:
        for text in re.findall(r"^ *trap ([^-].*)", (CHECKOUT / script).read_text(), re.M):
            assert text.startswith(("'' ", ": PIPE")) or text == '"$2"$\'\\n)\' "$1"' or " EXIT" in text, text


def test_exec_script_leaves_no_loop_by_break_or_continue() -> None:
    """Meanwhile a trap would run no command: the signal would be lost, or end the job with a syntax error, see hear."""
    code = [re.sub(r"(^|\s)#.*", "", line) for line in EXEC.read_text().splitlines()]
    assert [line for line in code if re.search(r"\b(break|continue)\b", line)] == []


def test_outputs_that_a_process_in_its_own_session_still_writes_are_whole(folder: Path) -> None:
    """It is ended like all that the work has left; tar would find its file changed, and the node would be blamed."""
    writes = "setsid bash -c 'while :; do echo 1 >>grow; done' & until [[ -s grow ]]; do sleep 0.01; done"
    (folder / "script").write_text(writes)
    said = call(
        "make_scratch; mkdir -p $scratch/work/.osgprod; cp $TMPDIR/../script $scratch/work/.osgprod\n"
        "SLICES=1 MAX_LOG_BYTES=0; run_work 0; pack '' $scratch/t.tar.gz || echo $pack_error\n"
        "echo $work_status $packed; remove_tree $scratch",
        _CONDOR_SCRATCH_DIR=str(folder),
    )
    assert said == "0 1\n"


def test_socket_is_no_output(folder: Path) -> None:
    said = call(
        "make_scratch; mkdir $scratch/work; cd $scratch/work; touch 1 $scratch/work.log\n"
        "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'\n"
        "pack '' $scratch/t.tar.gz; echo $packed; remove_tree $scratch",
        _CONDOR_SCRATCH_DIR=str(folder),
    )
    assert said == "1\n"


@pytest.mark.usefixtures("rawdata")
def test_job_whose_folder_somebody_removes_reports_it(node: Node, world: World) -> None:
    code, log = node.run(1, OSGPROD_RECON=node.program("recon", 'rm -rf "$TMPDIR"'))
    assert code == 20, log
    assert report_of(world)["outcome"] == "node-fault"
    assert report_of(world)["reason"].startswith(
        "the folder of the work or its log is gone, or could not be made"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize("inodes", [10, *slow(*range(2, 10), *range(11, 24))])
def test_disk_that_takes_no_further_file_is_the_nodes_fault_or_none(
    node: Node, world: World, site: Site, rawdata: Path, inodes: int
) -> None:
    """At whatever file it ends: with 10 not even the log of the work could be made, and the slice was blamed."""
    recon = node.program("recon", "mkdir d && echo b >d/b && echo c >c")
    with small_file_system(f"nr_inodes={inodes},mode=755") as node.folder:
        code, log = node.run(
            1, OSGPROD_RECON=recon, _CONDOR_SCRATCH_DIR=str(node.folder), OSGPROD_OUTPUT_URL=f"{site.url}/out"
        )
    report = report_of(world)
    assert (code, report.get("outcome")) in ((20, None), (20, "node-fault"), (DONE, "done")), log
    if code == DONE:
        content = io.BytesIO(site.files["/out/job_7_1.tar.gz"])
        with tarfile.open(fileobj=content) as archive:
            assert {"./d/b", "./c"} <= set(archive.getnames())
    assert state(world) == ({} if not report else {"done" if code == DONE else "ready": 1})


# --- environments --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rawdata")
def test_odd_environment_of_a_node_changes_nothing(node: Node, world: World) -> None:
    """The work's own programs see it as it was; the options of our shells are not in it."""
    (node.folder / "t m\np").mkdir()
    recon = node.program(
        "recon", "false; set -o | grep -E '^(errexit|nounset|posix) *on'; head >>out; [[ $TAR_OPTIONS ]]"
    )
    code, log = node.run(
        1,
        "/bin/bash",
        "-c",
        'exec "$@" <&-',
        "-",
        OSGPROD_RECON=recon,
        _CONDOR_SCRATCH_DIR=None,
        TMPDIR="t m\np",  # relative
        SHELLOPTS="braceexpand:noglob",
        BASHOPTS="failglob:nocasematch:nullglob",
        CDPATH="/:/tmp",
        GLOBIGNORE="*",
        LANG="tr_TR.UTF-8",
        FUNCNEST="2",
        TAR_OPTIONS="--exclude=out",
        GZIP="-d",
        GREP_OPTIONS="-v --color=always",
        LD_PRELOAD="/nonexistent/of a pilot.so",  # the loader warns of it, at each program
        **{f"BASH_FUNC_{name}%%": "() { echo a function; }" for name in ("head", "curl", "cd", "rm")},
    )
    assert code == DONE, log
    assert "a function" not in log and "errexit" not in log and "nounset" not in log
    assert report_of(world)["outcome"] == "done"
    assert report_of(world)["outputs"] == 1
    assert names(node.folder / "job_7_1.tar.gz") == {"out", "osgprod_work.log"}
    assert list((node.folder / "t m\np").iterdir()) == []


def test_time_after_which_a_site_ends_idle_shells_ends_no_command(folder: Path) -> None:
    """TMOUT is also the longest wait of each "read" of bash: a delivery that took longer failed, with 141."""
    said = call(
        "make_scratch; slow() { sleep 1.5; echo whole; }; capture slow; echo $captured; remove_tree $scratch",
        TMOUT="1",
        _CONDOR_SCRATCH_DIR=str(folder),
    )
    assert said == "whole\n"


OUR_FIRST_COMMANDS = "exec command builtin unset set export umask readonly declare source log exit"


@pytest.mark.parametrize("script", SHIPPED)
def test_functions_of_a_node_reach_no_command_of_our_scripts_not_even_the_step_that_drops_them(
    folder: Path, script: str
) -> None:
    """The scripts are run by "bash", not by their first lines. The work's programs see no POSIXLY_CORRECT."""

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        hostile = {
            f"BASH_FUNC_{name}%%": "() { echo hostile $FUNCNAME; }" for name in OUR_FIRST_COMMANDS.split()
        }
        environment = {"PATH": "/usr/bin:/bin", "OSGPROD_TRIES": "many", **hostile}
        return subprocess.run(
            ["/bin/bash", *command], cwd=folder, env=environment, capture_output=True, text=True
        )

    done = run(CHECKOUT / script, "argument of", "2")
    assert done.stdout == ""
    assert done.stderr.endswith(
        ": OSGPROD_TRIES is 'many': it must be a whole number from 1 to 1000, without a unit\n"
    )
    assert done.returncode == 40
    (step,) = re.findall(r'^if \[\[ "\$-".*?^fi$', (CHECKOUT / script).read_text(), re.M | re.S)
    show = "export -p | grep -c POSIXLY_CORRECT; set -o | grep '^posix'; printf '%s\n' \"$@\""
    (folder / "step").write_text(f"{step}\nset +o posix\n{show}\n")
    assert run(folder / "step", "a  b", "*").stdout == "0\nposix          \toff\na  b\n*\n"


@pytest.mark.usefixtures("rawdata")
def test_node_where_posix_mode_is_wanted(node: Node) -> None:
    code, log = node.run(1, POSIXLY_CORRECT="1")
    assert code == DONE, log


@pytest.mark.usefixtures("rawdata")
def test_what_a_container_image_sets_by_its_bash_env_reaches_the_work(node: Node) -> None:
    """And its functions do not reach the commands of our scripts."""
    image = node.program("env", "export OF_THE_IMAGE=here; head() { exit 9; }; export -f head")
    recon = node.program(
        "recon", 'echo "$OF_THE_IMAGE" >out; [[ "$OF_THE_IMAGE" == here ]] && declare -F head'
    )
    code, log = node.run(1, BASH_ENV=image, OSGPROD_RECON=recon)
    assert code == DONE, log


# --- clocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", ["+ 100000", "- 100000"])
def test_job_waits_for_work_as_long_as_it_may_though_the_clock_jumps(jump: str) -> None:
    """SECONDS of bash goes with the clock."""
    waits = call(
        "disk_has_room() { :; }\n"
        "persistent_request() { http_status=200 answer=wait head=$'HTTP/1.1 200 OK\\r\\nRetry-After: 100'; }\n"
        f"pause() {{ SECONDS=$((SECONDS {jump})); echo waits; }}\n"
        "MAX_WAIT_S=250; checkout 1 || echo $?"
    )
    assert waits == f"waits\nwaits\n{LATER}\n"


def test_job_asks_no_more_than_once_a_second_whatever_the_server_says() -> None:
    waits = call(
        "disk_has_room() { :; }\n"
        "persistent_request() { http_status=200 answer=wait head=$'HTTP/1.1 200 OK\\r\\nRetry-After: 0'; }\n"
        "pause() { echo ${1%.*}; }\n"
        "MAX_WAIT_S=3; checkout 1 || echo $?"
    )
    assert waits == f"1\n1\n1\n{LATER}\n"


# --- old shells ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SHIPPED)
def test_comment_inside_a_substitution_has_no_quote(script: str) -> None:
    """Version 4.2 of bash reads a quote in a comment inside of <(...) inside of $(...) as the begin of a text."""
    inside = 0
    for number, line in enumerate((CHECKOUT / script).read_text().splitlines(), 1):
        code, _, comment = f"{line} ".partition(" # ")
        assert not inside or not set("'\"`") & set(comment), f"{script}:{number}"
        if re.search(r"(\$|<|>)\($", code.rstrip()):
            inside += 1
        elif inside and re.fullmatch(r"\s*\)[^(]*", code):
            inside -= 1
    assert inside == 0


# --- merges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "when"), [("od", "*3,6/*"), ("wc", ""), ("sort", "*"), ("find", "3,6*"), ("python3", "*evio*")]
)
def test_program_of_a_merge_that_somebody_kills_blames_neither_an_input_nor_the_merge(
    merge: Merge, name: str, when: str
) -> None:
    """By the system's lack of memory, for example."""
    merge.only("sync" if name == "python3" else "hd_root")
    merge.on_disk()
    real = shutil.which(name, path="/usr/bin:/bin")
    merge.program(name, f'case "$*" in {when or "-c"}) kill -KILL $$ ;; esac; exec {real} "$@"')
    code, log = merge.run()
    assert code in (NODE_FAULT, KILLED), log
    assert merge.reported("bad_inputs") is None
    assert merge.delivered() == {}
