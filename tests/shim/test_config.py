"""The settings: read in one place, checked, documented, and never shown when they are secret."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from shim import config
from shim.cli.running import serve
from shim.config import Secret, SettingError, Settings
from tests.support import CHECKOUT

NAME = re.compile(r"\bOSGPROD_[A-Z0-9_]*[A-Z0-9]\b")
APACHE_DEFINES = {
    f"OSGPROD_{name}"
    for name in ["CERTIFICATE", "CHECKOUT", "KEY", "LISTEN", "LOG", "SERVER", "SOCKET", "VENV"]
}


def test_no_other_module_reads_the_environment() -> None:
    for path in (CHECKOUT / "shim").rglob("*.py"):
        if path.name != "config.py":
            assert not re.search(
                r"\benviron\b(?!:)|\bgetenv\b", re.sub(r"wsgi environ", "", path.read_text())
            ) or (path.name == "wsgi.py" and "os.environ" not in path.read_text()), path


def test_each_variable_that_a_program_or_a_page_names_is_known() -> None:
    known = {variable.name for variable in config._variables().values()} | config.OTHER_PROGRAMS
    sources = [CHECKOUT / "README.md"]
    for folder, pattern in (
        ("condor", "*"),
        ("worker", "*"),
        ("deploy", "*"),
        ("docs", "*.md"),
        ("shim", "*.py"),
    ):
        sources += [path for path in (CHECKOUT / folder).rglob(pattern) if path.is_file()]
    for path in sources:
        if path.suffix not in (".pyc", ".png"):
            unknown = set(NAME.findall(path.read_text())) - known - APACHE_DEFINES
            assert not {name for name in unknown if not name.endswith("_COMPLETE")}, (
                f"{path}: name them in OTHER_PROGRAMS of shim/config.py"
            )


def test_unknown_variable_is_named_with_the_nearest_known_one() -> None:
    assert config.unknown_variables({"OSGPROD_POOLSIZE": "9", "OSGPROD_DSN": "", "PATH": ""}) == [
        "OSGPROD_POOLSIZE has no effect: no such setting; the nearest one is OSGPROD_POOL_SIZE"
    ]
    options = {option.name for option in serve.params} - {"help"}
    assert set(config.OPTIONS_OF_SERVE) == options
    for name in config.OPTIONS_OF_SERVE:
        assert config.unknown_variables({f"OSGPROD_{name.upper()}": "8080"}) == [
            f"OSGPROD_{name.upper()} has no effect: no such setting; use the option --{name} of the command that serves"
        ]
    assert config.unknown_variables({"OSGPROD_Q": "9"}) == ["OSGPROD_Q has no effect: no such setting"]


def test_command_line_warns_of_an_unknown_variable_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "shim", "completion", "bash"], cwd=CHECKOUT, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "OSGPROD_DNS": "host=db"},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (
        0, "osgprod: OSGPROD_DNS has no effect: no such setting; the nearest one is OSGPROD_DSN\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "OSGPROD_POOL_SIZE",
            "0",
            "OSGPROD_POOL_SIZE is '0', but must be a whole number from 1 to 9999999999",
        ),
        (
            "OSGPROD_ROOT_PATH",
            "foo",
            "OSGPROD_ROOT_PATH is 'foo', but must be empty, or a path that begins with /",
        ),
    ],
)
def test_value_that_cannot_be_is_one_line_with_name_value_and_rule(
    variable: str, value: str, message: str
) -> None:
    with pytest.raises(SettingError) as refused:
        Settings.read({variable: value})
    assert str(refused.value) == message and refused.value.hint.startswith("docs/operations.md")


@pytest.mark.parametrize(
    ("dsn", "rule"),
    [
        ("port=abc", "whose ports are numbers, one for all hosts or one for each"),
        ("postgresql://me:hush/h@db/osgprod", "whose ports are numbers, one for all hosts or one for each"),
        ("host=a,b port=1,2,3", "whose ports are numbers, one for all hosts or one for each"),
        ("port=0", "with ports from 1 to 65535"),
        ("host=a port=70000", "with ports from 1 to 65535"),
        ("host=a connect_timeout=soon", "whose connect_timeout is a whole number"),
        ("host=a keepalives_idle=x", "whose keepalives_idle is a whole number"),
        ("host=a.invalid sslmode=hush", "whose sslmode is one that libpq knows"),
        ("host=a,b target_session_attrs=hush", "whose target_session_attrs is one that libpq knows"),
        ("host=a ssl_min_protocol_version=hush", "whose ssl_min_protocol_version is one that libpq knows"),
    ],
)
def test_option_of_a_dsn_that_can_not_be_is_named_without_its_value(dsn: str, rule: str) -> None:
    for variable in ("OSGPROD_DSN", "OSGPROD_READ_DSN", "OSGPROD_OPERATOR_DSN", "OSGPROD_ORIGINAL_DSN"):
        with pytest.raises(SettingError) as refused:
            Settings.read({variable: dsn})
        assert str(refused.value) == f"{variable} must be a connection string of libpq {rule}"
        assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "dsn",
    ["port=", "port=1,2", "host=a,b port=5432,", "host=a,b port=1", "hostaddr=::1 port=1", "service=none", "",
     "connect_timeout=-1 sslmode=require",
     "postgresql://me:pass@a:5433,b:5434/x?target_session_attrs=read-write&connect_timeout=2"],
)  # fmt: skip
def test_dsn_that_libpq_takes_is_taken(dsn: str) -> None:
    assert Settings.read({"OSGPROD_DSN": dsn}).dsn.text == dsn


def test_empty_variable_is_none_except_where_empty_means_something() -> None:
    read = Settings.read({"OSGPROD_POOL_SIZE": "", "OSGPROD_ROOT_PATH": "", "OSGPROD_DASHBOARD_ALLOW": ""})
    assert (read.pool_size, read.root_path, read.dashboard_allow) == (8, "", "")
    assert Settings.read({}) == Settings()


def test_no_secret_shows() -> None:
    secrets = {
        variable.name: "password=hush-hush"
        for variable in config._variables().values()
        if variable.read in (config._secret, config._dsn)
    }
    assert {
        "OSGPROD_DSN",
        "OSGPROD_READ_DSN",
        "OSGPROD_OPERATOR_DSN",
        "OSGPROD_OPERATOR_TOKENS",
        "OSGPROD_MAGIC",
        "OSGPROD_DASHBOARD_TOKEN",
        "OSGPROD_ORIGINAL_DSN",
    } == set(secrets)
    read = Settings.read(secrets)
    assert read.dsn == Secret("password=hush-hush") and "hush" not in f"{read} {read!r} {read.dsn}"


def test_table_in_the_documentation_is_the_one_of_the_code() -> None:
    text = (CHECKOUT / "docs" / "operations.md").read_text()
    block = text.partition("<!-- settings -->\n")[2].partition("<!-- end of settings -->")[0]
    assert block.splitlines() == config.table(), "make docs writes it"
