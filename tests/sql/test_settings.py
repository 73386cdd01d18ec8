"""The settings of a project: each one that is shown can be changed, and is stored."""

from __future__ import annotations

import json

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
