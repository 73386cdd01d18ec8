"""The settings of a project: each one that is shown can be changed, and is stored."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from shim.database import call
from tests.support import World

OTHER_TEXTS = {
    "state": "draining",
    "restart_proof": "key",
    "target_s": 3600,
    "merge_by": "file",
    "merge_cleanup": "delete",
    "merge_output_url": "https://storage.example.org/merged",
    "output_home": "https://storage.example.org/outputs",
    "xrootd_prefix": "root://door.example.org/",
    "subnet_pattern": "10.0.0.0/8",
    "node_fault_codes": [75],
}


def test_each_setting_that_is_shown_is_stored_when_it_is_changed(world: World) -> None:
    def stored() -> dict[str, object]:
        row = world.db.execute(
            "SELECT to_jsonb(p) AS p FROM osgprod_data.projects p WHERE p.name = 'p'"
        ).fetchone()
        assert row
        return dict(row["p"])

    shown = [row["setting"] for row in call(world.db, "set_project", project="p", settings="{}")]
    before = stored()
    assert len(shown) > 20
    for name in shown:
        old = before[name]
        new: object
        if name in OTHER_TEXTS:
            new = OTHER_TEXTS[name]
        elif isinstance(old, bool):
            new = not old
        else:
            kind = world.db.execute(
                "SELECT format_type(a.atttypid, NULL) AS type FROM pg_attribute a"
                " WHERE a.attrelid = 'osgprod_data.projects'::regclass AND a.attname = %s",
                (name,),
            ).fetchone()
            assert kind
            new = int(str(old or 0)) + 1 if kind["type"] in ("integer", "bigint") else f"{old or ''}x"
        assert new != old
        call(world.db, "set_project", project="p", settings=json.dumps({name: new}))
        assert stored()[name] == new, name
        call(world.db, "set_project", project="p", settings=json.dumps({name: old}))
        assert stored()[name] == old, f"{name} can be set back"


def test_two_projects_deliver_no_merged_files_to_the_same_folder(world: World) -> None:
    def deliver_to(project: str, url: str) -> None:
        call(world.db, "set_project", project=project, settings=json.dumps({"merge_output_url": url}))

    world.with_project("q")
    deliver_to("p", "https://storage.example.org/merged/{kind}")
    with pytest.raises(
        psycopg.Error, match="is that of project p, whose merged files would be replaced"
    ) as error:
        deliver_to("q", "https://storage.example.org/merged/{kind}/")
    assert error.value.sqlstate == "OG108"
    deliver_to("p", "https://storage.example.org/{project}/{kind}")
    deliver_to("q", "https://storage.example.org/{project}/{kind}")
    deliver_to("q", "https://storage.example.org/merged/{kind}")


@pytest.mark.parametrize(
    ("url", "other", "is_same"),
    [
        ("https://s.example.org/m/{kind}", "davs://S.example.org:443//m/./{kind}//", True),
        ("https://s.example.org/m", "http://user@s.example.org:80/m/", True),
        ("https://s.example.org/p/m", "https://s.example.org/{project}/m", True),  # that of project p
        ("root://s.example.org//m", "xroots://s.example.org:1094/m", True),
        ("file:///mount/m", "/mount/m/", True),
        ("https://s.example.org/m", "https://s.example.org:8443/m", False),
        ("https://s.example.org/m", "https://t.example.org/m", False),
        ("https://s.example.org/m", "root://s.example.org/m", False),
        ("https://s.example.org/m/{kind}", "https://s.example.org/M/{kind}", False),
        ("https://s.example.org/{project}/m", "https://s.example.org/{project}/m", False),
        ("https://s.example.org/m", "https://s.example.org/m.x", False),
    ],
)
def test_folder_of_merged_files_is_known_in_any_spelling(
    world: World, url: str, other: str, is_same: bool
) -> None:
    world.with_project("q")
    first, second = ("q", "p") if "{project}" in other and is_same else ("p", "q")
    world.set(project=first, merge_output_url=url)
    if is_same:
        with pytest.raises(psycopg.Error, match=f"is that of project {first}"):
            world.set(project=second, merge_output_url=other)
    else:
        world.set(project=second, merge_output_url=other)


ODD_VALUES: list[object] = [
    "",
    " ",
    "x",
    "x y",
    "a\nb",
    "../x",
    "/x\u2028y",
    "\U0001f642",
    "ftp://x",
    "https://",
    "long" * 2500,
    "none",
    -1,
    0,
    0.5,
    2147483647,
    2147483648,
    2**63,
    1e30,
    True,
    None,
    [],
    [None],
    [-1],
    [256],
    [2**40],
    ["x"],
    {},
    {"a": 1},
]


def test_odd_value_of_any_setting_is_stored_as_something_useful_or_refused_in_one_line(world: World) -> None:
    """The message names setting and value, the hint the allowed values, and a refused call changes nothing."""

    def rows() -> dict[str, str]:
        return {r["setting"]: r["value"] for r in call(world.db, "set_project", project="p", settings="{}")}

    before = rows()
    for name, old in before.items():
        for value in ODD_VALUES:
            try:
                after = call(world.db, "set_project", project="p", settings=json.dumps({name: value}))
            except psycopg.Error as error:
                message, hint = error.diag.message_primary or "", error.diag.message_hint or ""
                assert error.sqlstate in ("OG106", "OG108"), (name, value, message)
                named = {"xrootd_prefix": "prefix", "subnet_pattern": "subnet pattern"}.get(name, name)
                assert named in message, (name, value, message)
                assert "\n" not in message + hint and len(message) < 400, (name, value, message)
                assert hint, (name, value, message)
                shown = (
                    "needs a value"
                    if value is None
                    else str(value)[:50].partition("\n")[0].partition("\u2028")[0]
                )
                if isinstance(value, str | int) and value not in ("", " ") and not isinstance(value, bool):
                    assert shown in message, (name, value, message)
                continue
            stored = {r["setting"]: r["value"] for r in after}[name]
            if stored is not None:
                assert "\n" not in stored and len(stored) <= 1024, (name, value, stored)
            if stored != old:
                world.db.execute(
                    "SELECT osgprod.set_project('p', jsonb_build_object(%s::text, %s::text))", (name, old)
                )
    assert rows() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merge_output_url": "ftp://x"}, "merge_output_url 'ftp://x' has a scheme that no job knows"),
        ({"merge_output_url": "x"}, "merge_output_url 'x' is neither a URL nor an absolute folder"),
        ({"merge_output_url": "https://h/x?a=b"}, "has a query or a fragment, so it names no folder"),
        (
            {"merge_output_url": "https://h/{runs}"},
            "another placeholder than {kind}, {run}, {seqno}, {project}",
        ),
        ({"merge_output_url": "https://me:secret@h/x"}, "contains a password, which each job would see"),
        ({"output_home": "x"}, "output_home 'x' is neither a URL nor an absolute folder"),
        ({"output_home": "https:///x"}, "output_home 'https:///x' names no host"),
        ({"output_home": "/x/{run}"}, "another placeholder than {cluster}, {process}, {start}, {project}"),
        ({"output_home": "/x/{process}.tgz"}, "has {process} without {cluster}"),
        ({"strip_prefix": "dcache"}, "strip_prefix 'dcache' is not an absolute folder"),
        ({"bearer_scope": "a b"}, "bearer_scope 'a b' is not a single scope"),
        ({"bearer_issuer": "https://i\n"}, "bearer_issuer 'https://i' is not an issuer"),
        ({"node_fault_codes": [75, 256]}, "node_fault_codes can't contain 256"),
        ({"node_fault_codes": [None]}, "node_fault_codes can't contain NULL"),
        ({"node_fault_codes": [0]}, "node_fault_codes can't contain 0"),
        ({"backoff_s": 7200}, "backoff_s, 7200 s, is more than max_backoff_s, 3600 s"),
        ({"max_backoff_s": 59}, "backoff_s, 60 s, is more than max_backoff_s, 59 s"),
        (
            {"heartbeat_s": 0, "target_s": 21600},
            "lease_s, 21600 s, is not more than target_s, 21600 s, and jobs send no heartbeats",
        ),
        ({"lease_s": 1000}, "lease_s must be at least twice heartbeat_s, not 1000 and 600"),
        ({"wait_s": 0}, "wait_s must be from 1 to 86400, not 0"),
        ({"merge_by": "day"}, "merge_by must be one of none, file, run, not day"),
    ],
)
def test_setting_that_can_not_work_is_refused(
    world: World, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        world.set(**settings)
    assert caught.value.sqlstate == "OG108" and caught.value.diag.message_hint
    assert message in str(caught.value.diag.message_primary)
    assert "secret" not in str(caught.value)


def test_settings_that_contradict_each_other_alone_may_be_set_together(world: World) -> None:
    world.set(backoff_s=7200, max_backoff_s=7200)
    world.set(heartbeat_s=0, target_s=21600, lease_s=43200)
    world.set(output_home="/x/{cluster}/{process}.tgz", strip_prefix="/dcache/")
    rows = {r["setting"]: r["value"] for r in call(world.db, "set_project", project="p", settings="{}")}
    assert (rows["backoff_s"], rows["target_s"], rows["strip_prefix"]) == ("7200", "21600", "/dcache")


def test_another_setting_can_be_changed_in_a_project_that_is_older_than_a_rule(world: World) -> None:
    world.db.execute("UPDATE osgprod_data.projects SET merge_output_url = 'ftp://x', backoff_s = 7200")
    world.db.execute("UPDATE osgprod_data.projects SET strip_prefix = '/cache/'")  # URLs depend on it
    world.set(max_failures=4)
    rows = {r["setting"]: r["value"] for r in call(world.db, "set_project", project="p", settings="{}")}
    assert rows["strip_prefix"] == "/cache/"
    with pytest.raises(psycopg.Error, match="backoff_s"):
        world.set(max_backoff_s=60)


def test_none_and_an_empty_text_mean_no_value_where_there_may_be_none(world: World) -> None:
    """The help says "none = no limit", and documents write mergescript=none."""
    for empty in ("none", ""):
        world.set(max_live=5, mergescript="m.bash", bearer_scope="work")
        world.set(max_live=empty, mergescript=empty, bearer_scope=empty)
        row = world.db.execute(
            "SELECT max_live, mergescript, bearer_scope FROM osgprod_data.projects"
        ).fetchone()
        assert row == {"max_live": None, "mergescript": None, "bearer_scope": None}


def test_setting_that_gets_its_value_again_changes_nothing(world: World) -> None:
    def row() -> dict[str, Any]:
        """As JSON, since a time may be -infinity; without next_due_at, by which each call has the leases looked at."""
        (row,) = world.db.execute(
            "SELECT to_jsonb(p) - 'next_due_at' AS row FROM osgprod_data.projects p WHERE p.name = 'p'"
        ).fetchall()
        return dict(row["row"])

    world.set(probe_jobs=1)
    world.add_file(2)
    world.checkout(0)
    world.report(0)
    before = row()
    assert before["unproven"] == 0
    world.set(probe_jobs=1, workscript=before["workscript"], state="active", lease_s=before["lease_s"])
    assert row() == before
    world.set(probe_jobs=2)
    assert (row()["unproven"], row()["tested_since"] > before["tested_since"]) == (2, True)


@pytest.mark.parametrize("settings", [None, "[]", "3", '"x"', "null"])
def test_settings_that_are_no_object_are_refused(world: World, settings: str | None) -> None:
    with pytest.raises(psycopg.Error, match="the settings of project p are no JSON object") as caught:
        call(world.db, "set_project", project="p", settings=settings)
    assert caught.value.sqlstate == "OG108"


def test_bad_arguments_of_a_new_project_are_refused_in_one_line(world: World) -> None:
    good = dict(
        project="q", subnet_pattern="10.0.0.0/8", workscript="w.bash", xrootd_prefix="", maxblockspercore=1
    )
    odd = ["", " ", "x\ny", "\U0001f642", "long" * 2500, None, "%", "ftp://x"]
    for name in ("project", "subnet_pattern", "workscript", "xrootd_prefix"):
        for value in odd:
            try:
                call(world.db, "add_project", **{**good, name: value})
            except psycopg.Error as error:
                message = error.diag.message_primary or ""
                assert error.sqlstate in ("OG106", "OG108"), (name, value, message)
                assert "\n" not in message and len(message) < 400 and error.diag.message_hint, (name, message)
            else:
                assert (name, value) in {
                    ("subnet_pattern", "%"),
                    *(("xrootd_prefix", v) for v in ("", " ", None)),
                }
                call(world.db, "remove_project", project="q")
    for blocks in (0, -1, 2147483647, None):
        with pytest.raises(
            psycopg.Error, match=r"maxblockspercore (must be from 1 to 1000000|needs a value)"
        ):
            call(world.db, "add_project", **{**good, "maxblockspercore": blocks})
