"""Odd arguments of every public function: each is accepted, or refused with a code of class OG in one short line."""

from __future__ import annotations

from typing import Any

import psycopg

from shim.database import call
from tests.support import World

LONG = "x" * 10240
WHOLE = ["-1", "0", "2147483647", None]
ODD: dict[str, list[str | None]] = {
    "int4": [*WHOLE, "-2147483648"],
    "int8": [*WHOLE, "9223372036854775807", "-9223372036854775808"],
    "text": ["", LONG, "a\nb", "\U0001f642", "%", "\\", "9" * 400, None],
    "_text": ["{}", "{NULL}", '{""}', "{" + ",".join(["x"] * 5000) + "}", '{"a\nb"}', "{{a,b},{c,d}}", None],
    "_int4": ["{}", "{NULL}", "{-1}", "{2147483647}", "{{1,2},{3,4}}", "[5:6]={1,2}", None],
    "jsonb": [
        *["null", "[]", "{}", '"x"', "[null]", "[[]]", None, '[{"n": 1e30}]', '[{"file_id": "x"}]'],
        '[{"n": 1, "project": "p", "cluster": "x"}]',
        '[{"block1": 2147483647, "block2": -1, "cluster": 1, "process": 1}]',
        '[{"from_block": -1}]',
    ],
    "timestamptz": ["-infinity", "infinity", "4713-01-01 BC", "294000-01-01", None],
    "inet": ["0.0.0.0/0", "::/0", "::ffff:1.2.3.4", None],
    "bytea": ["\\x", "\\x00", "\\x" + "ff" * 10000, None],
    "bool": ["t", "f", None],
    "_int8range": ["{}", "{NULL}", "{empty}", '{"[,)"}', '{"[-5,9223372036854775807)"}', None],
}  # fmt: skip
# The shim writes these calls. tests/security/test_fuzz.py sends odd words of jobs through it.
OF_THE_SHIM = {"checkout_slices", "heartbeats", "report_exits", "note_answers"}
USUAL: dict[str, str | None] = {
    "p_project": "p", "p_cluster": "1", "p_process": "0", "p_nstart": "1", "p_magic": "m", "p_client": "127.0.0.1",
    "p_cpus": "1", "p_exitcode": "0", "p_settings": "{}", "p_subnet_pattern": "%", "p_workscript": "w.bash",
    "p_xrootd_prefix": "", "p_maxblockspercore": "1", "p_worker": "wn1", "p_seconds": "60", "p_text": "wn1",
    "p_file_id": "1", "p_name": "me", "p_place": "env:X", "p_found": "[]", "p_attempts": "[]", "p_slices": "[]",
    "p_exit_code": "0", "p_ended_at": "2020-01-01", "p_bad": "[]",
}  # fmt: skip


def test_odd_argument_of_any_function_is_taken_or_refused_in_one_line(world: World) -> None:
    """The functions that change something are rolled back; PostgreSQL's own errors and code reach nobody."""
    world.set(merge_by="file", target_s=600, output_home="/x")
    for run in (1, 2):
        world.add_file(8, run=run)
    registered = {f"p_{name}": value for name, value in world.registered.items()}
    usual = USUAL | {
        name: "\\x" + value.hex() if isinstance(value, bytes) else str(value) for name, value in registered.items()
    }  # fmt: skip
    call(world.db, "add_notify_target", name="me", place="env:X")
    for process in range(4):
        world.checkout(process, host="wn1")
        if process < 3:
            world.report(process, process % 2, host="wn1")
    world.tick()
    functions = world.db.execute(
        "SELECT p.proname AS name, p.proargnames[:p.pronargs] AS names, p.pronargs - p.pronargdefaults AS needed,"
        " ARRAY(SELECT t.typname::text FROM unnest(p.proargtypes) WITH ORDINALITY AS u (type, n)"
        "        JOIN pg_type t ON t.oid = u.type ORDER BY u.n) AS types"
        "  FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace AND p.proname !~ '^_'"
    ).fetchall()
    faults: dict[tuple[str, str, str], str] = {}
    calls = 0
    for function in functions:
        if function["name"] in OF_THE_SHIM:
            continue
        names = function["names"] or []
        base = {name: usual[name] for name in names[: function["needed"]]}
        if "p_project" in names:
            base["p_project"] = "new" if function["name"] == "add_project" else "p"
        types = dict(zip(names, function["types"], strict=True))
        for name in names:
            for value in ODD[types[name]]:
                calls += 1
                wrong = fault(world.db, function["name"], types, {**base, name: value})
                if wrong:
                    faults[function["name"], name, str(value)[:30]] = wrong
    assert faults == {}
    assert calls > 1500


def fault(
    db: psycopg.Connection[Any], function: str, types: dict[str, str], arguments: dict[str, str | None]
) -> str | None:
    """What is wrong with the answer of a call, which is rolled back."""
    given = ", ".join(
        f"{name} => %s::{types[name].lstrip('_')}{'[]' * types[name].startswith('_')}" for name in arguments
    )
    try:
        with db.transaction(force_rollback=True):
            db.execute(f"SELECT * FROM osgprod.{function}({given})".encode(), list(arguments.values()))
    except psycopg.Error as error:
        message, hint = error.diag.message_primary or "", error.diag.message_hint or ""
        if not (error.sqlstate or "").startswith("OG"):
            return f"{error.sqlstate} {message}"
        if "\n" in message + hint or len(message) > 1024:
            return f"{len(message)} characters: {message[:200]}"
    return None
