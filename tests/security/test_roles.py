"""Who may call and touch what, tried by real logins and asserted over the catalog.

A new function, view or table fails here until the matrix below has a row for it, which says which roles may use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from shim.database import call, connect
from tests.support import World

# w: osgprod_worker (the shim), o: osgprod_operator, -: nobody but the owner. Private helpers, _name, are all "-".
FUNCTIONS = """
    add_project         -o
    add_notify_target   -o
    alive               wo
    amounts             wo
    attempts_by_exit    wo
    attempts_by_site    wo
    attempts_by_worker  wo
    ban_worker          -o
    blocked_workers     wo
    checkout_slice      wo
    checkout_slices     wo
    diagnose            -o
    done_over_time      wo
    estimate            wo
    find                wo
    foretell_work       -o
    forget_rawdata      -o
    freshness           wo
    health              wo
    heartbeat           wo
    heartbeats          wo
    idle_and_leased     wo
    import_file         -o
    job_history         wo
    jobs_needed         -o
    list_attempts       wo
    list_files          wo
    list_jobs           wo
    list_operations     -o
    list_rawdata        -o
    list_slices         wo
    live_attempts       wo
    load_slices         -o
    list_notify_targets -o
    log_tail            wo
    map_files           wo
    mark_notified       -o
    next_notifications  -o
    note_answers        wo
    note_health         -o
    progress            wo
    quarantined         wo
    rate                wo
    reclaim_lost        -o
    recycle             -o
    register_rawdata    -o
    remove_notify_target -o
    remove_project      -o
    list_doors          -o
    record_locality     -o
    list_next_files     -o
    report_exit         wo
    report_exits        wo
    resources           wo
    slice_size          wo
    run_periods         -o
    set_magic           -o
    set_project         -o
    stop_jobs           -o
    stop_project        -o
    tick                wo
    totals              wo
    resume_files        -o
    unload_slices       -o
    delivery            wo
    list_merges         wo
    list_outputs        -o
    outputs_of          wo
    lose_outputs        -o
    retry_merges        -o
    list_versions       -o
    import_merge        -o
    verify              -o
    write_check         wo
"""
# Views of schema osgprod and tables of osgprod_data: SELECT, and never more, for whom?
RELATIONS = """
    _yoyo_log         -o
    _yoyo_migration   -o
    answers           -o
    attempts          -o
    backups           -o
    loaded_files      -o
    log_tails         -o
    lost_outputs      -o
    merges            -o
    migrated_files    --
    noted_health      -o
    notifications     -o
    notify_targets    -o
    operations        -o
    presence          --
    outputs           -o
    pace_looks        -o
    paces             -o
    projects          -o
    rawdata           -o
    recent_failures   -o
    refusals          -o
    reports           -o
    slices            -o
    tallied_sites     -o
    tallies           -o
    totals            -o
    versions          -o
    worker_bans       -o
"""
LOGINS = {"w": "test_shim_login", "o": "test_operator_login", "s": "test_stranger_login"}


def matrix(text: str) -> dict[str, set[str]]:
    return {name: set(who) - {"-"} for name, who in (line.split() for line in text.strip().splitlines())}


@pytest.fixture
def logins(db: psycopg.Connection[dict[str, Any]], dsn: str) -> Iterator[dict[str, psycopg.Connection[Any]]]:
    """Connections of a member of each group role, and of a login without any role."""
    groups = {"w": "IN ROLE osgprod_worker", "o": "IN ROLE osgprod_operator", "s": ""}
    for who, group in groups.items():
        if not db.execute("SELECT FROM pg_roles WHERE rolname = %s", [LOGINS[who]]).fetchall():
            db.execute(f"CREATE ROLE {LOGINS[who]} LOGIN {group}")
    connections = {who: connect_as(dsn, who) for who in groups}
    yield connections
    for connection in connections.values():
        connection.close()


def connect_as(dsn: str, who: str) -> psycopg.Connection[Any]:
    return psycopg.connect(f"{dsn} user={LOGINS[who]}", autocommit=True, row_factory=dict_row)


def functions(db: psycopg.Connection[dict[str, Any]]) -> list[dict[str, Any]]:
    return db.execute(
        """SELECT p.oid, p.proname AS name, p.prosecdef AS definer, p.proconfig AS settings, p.prosrc AS body,
                  p.proacl::text AS acl, pg_get_userbyid(p.proowner) AS owner,
                  obj_description(p.oid, 'pg_proc') AS comment,
                  ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) AS t) AS types
             FROM pg_proc p WHERE p.pronamespace = 'osgprod'::regnamespace ORDER BY p.proname"""
    ).fetchall()


def attempt(connection: psycopg.Connection[Any], statement: str | sql.Composed) -> str:
    """Runs a statement and takes it back; returns 'ok', or 'refused' for lack of a right."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return "refused"
    except psycopg.Error:
        return "ok"  # it may call it; other tests check what wrong arguments get
    return "ok"


def test_each_login_can_call_what_the_matrix_says_and_nothing_else(
    db: psycopg.Connection[dict[str, Any]], logins: dict[str, psycopg.Connection[Any]]
) -> None:
    allowed = matrix(FUNCTIONS)
    public = {row["name"] for row in functions(db) if not row["name"].startswith("_")}
    assert public == set(allowed), "each function has its row in the matrix, and each row its function"
    tried, expected = {}, {}
    for row in functions(db):
        # No constants: PostgreSQL answers NULL of a STRICT function to everybody, without a call.
        arguments = sql.SQL(", ").join(sql.SQL(f"(SELECT NULL::{kind})") for kind in row["types"])
        statement = sql.SQL("SELECT * FROM {}({})").format(sql.Identifier("osgprod", row["name"]), arguments)
        for who, connection in logins.items():
            tried[row["name"], who] = attempt(connection, statement)
            expected[row["name"], who] = "ok" if who in allowed.get(row["name"], set()) else "refused"
    assert tried == expected


def test_no_login_has_a_right_that_the_matrix_does_not_give(
    db: psycopg.Connection[dict[str, Any]], logins: dict[str, psycopg.Connection[Any]]
) -> None:
    """The same by the catalog: a refusal above could have had another reason, like an argument's type."""
    allowed = matrix(FUNCTIONS)
    for row in functions(db):
        for who, login in LOGINS.items():
            answer = db.execute(
                "SELECT has_function_privilege(%s, %s::oid, 'EXECUTE') AS may", [login, row["oid"]]
            ).fetchone()
            assert answer == {"may": who in allowed.get(row["name"], set())}, (row["name"], login)


def test_each_function_follows_the_rules(db: psycopg.Connection[dict[str, Any]]) -> None:
    allowed = matrix(FUNCTIONS)
    for row in functions(db):
        name = row["name"]
        assert row["owner"] == "osgprod_owner", name
        assert row["acl"], f"{name}: PUBLIC may call it"
        assert not any(item.startswith("=") for item in row["acl"].strip("{}").split(",")), name
        if allowed.get(name):
            assert row["definer"], f"{name}: granted, so it must run with its owner's rights"
            assert row["settings"], f"{name}: no search_path"
            paths = [s.removeprefix("search_path=") for s in row["settings"] if s.startswith("search_path=")]
            assert paths and paths[0].replace(" ", "").startswith("pg_catalog,"), name
            assert paths[0].replace(" ", "").endswith(",pg_temp"), f"{name}: pg_temp has to be last"
            assert re.search("osgprod_(operator|worker)", row["comment"] or ""), (
                f"{name}: no comment, or for whom?"
            )
        else:
            assert not row["definer"], f"{name}: nobody is granted it, so it needs no rights of its owner"


def test_no_function_builds_sql_from_values(db: psycopg.Connection[dict[str, Any]]) -> None:
    for row in functions(db):
        code = "\n".join(line.split("--")[0] for line in row["body"].splitlines())
        # _update_of_project() is made of the names of columns, quoted; values come by USING.
        for allowed in ("EXECUTE FUNCTION", "EXECUTE osgprod._update_of_project() USING"):
            code = code.replace(allowed, "")
        assert "EXECUTE" not in code, row["name"]


def test_tables_can_be_read_by_the_matrix_and_written_by_nobody(
    db: psycopg.Connection[dict[str, Any]], logins: dict[str, psycopg.Connection[Any]]
) -> None:
    allowed = matrix(RELATIONS)
    rows = db.execute(
        """SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind,
                  (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                    AND NOT a.attisdropped ORDER BY a.attnum LIMIT 1) AS first
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname IN ('osgprod', 'osgprod_data') AND c.relkind IN ('r', 'v', 'm', 'p', 'f', 'S')"""
    ).fetchall()
    names = {row["name"] for row in rows if row["kind"] != "S"}
    ours = {name for name in names if "yoyo" not in name or name in allowed}
    assert ours == set(allowed), "each table and view has its row in the matrix"
    for row in rows:
        table = sql.Identifier(row["schema"], row["name"])
        for who, connection in logins.items():
            if row["kind"] == "S":
                statement = sql.SQL("SELECT nextval({})").format(f"{row['schema']}.{row['name']}")
                assert attempt(connection, statement) == "refused", (row["name"], who)
                continue
            read = "ok" if who in allowed.get(row["name"], set()) else "refused"
            assert attempt(connection, sql.SQL("SELECT * FROM {} LIMIT 1").format(table)) == read, (row, who)
            for write in (
                sql.SQL("INSERT INTO {} DEFAULT VALUES").format(table),
                sql.SQL("UPDATE {} SET {} = DEFAULT").format(table, sql.Identifier(row["first"])),
                sql.SQL("DELETE FROM {}").format(table),
                sql.SQL("TRUNCATE {} CASCADE").format(table),
                sql.SQL("LOCK {} IN ACCESS EXCLUSIVE MODE").format(table),
                sql.SQL("DROP TABLE {} CASCADE").format(table),
            ):
                assert attempt(connection, write) in ("refused", "ok" if row["kind"] == "v" else "refused"), (
                    write.as_string(),
                    who,
                )
            for right in ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
                answer = db.execute(
                    "SELECT has_table_privilege(%s, %s::oid, %s) AS may", [LOGINS[who], row["oid"], right]
                ).fetchone()
                assert answer == {"may": False}, (row["name"], who, right)


ESCAPES = """
    SET ROLE osgprod_owner
    SET ROLE postgres
    SET SESSION AUTHORIZATION osgprod_owner
    SET SESSION AUTHORIZATION postgres
    GRANT osgprod_owner TO CURRENT_USER
    ALTER ROLE osgprod_worker SUPERUSER
    CREATE FUNCTION osgprod.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'
    CREATE TABLE osgprod_data.mine ()
    CREATE SCHEMA mine
    DROP FUNCTION osgprod.tick
    DROP SCHEMA osgprod CASCADE
    ALTER FUNCTION osgprod.tick SECURITY INVOKER
    ALTER FUNCTION osgprod.tick SET search_path = public
    COMMENT ON FUNCTION osgprod.tick IS 'mine'
    ALTER DEFAULT PRIVILEGES FOR ROLE osgprod_owner GRANT ALL ON TABLES TO PUBLIC
    SET session_replication_role = replica
    SET log_statement = 'all'
    ALTER SYSTEM SET log_statement = 'all'
    COPY (SELECT 1) TO PROGRAM 'true'
    COPY (SELECT 1) TO '/tmp/osgprod-test-escape'
    SELECT pg_read_file('postgresql.conf')
    SELECT lo_import('/etc/passwd')
    SELECT * FROM pg_authid
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' AND pid <> pg_backend_pid()
    CREATE EXTENSION pg_stat_statements
"""


def test_no_login_can_become_more_than_it_is(logins: dict[str, psycopg.Connection[Any]]) -> None:
    for who, connection in logins.items():
        for statement in ESCAPES.strip().splitlines():
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.strip())
                pytest.fail(f"{LOGINS[who]} could: {statement}")


def test_no_login_can_give_its_rights_to_others(
    db: psycopg.Connection[dict[str, Any]], logins: dict[str, psycopg.Connection[Any]]
) -> None:
    before = [(row["name"], row["acl"]) for row in functions(db)]
    for connection in logins.values():
        attempt(
            connection, "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA osgprod TO PUBLIC"
        )  # a warning, by the standard
        with pytest.raises(psycopg.Error):
            connection.execute("GRANT osgprod_worker TO PUBLIC")
    assert [(row["name"], row["acl"]) for row in functions(db)] == before


def test_the_shim_can_not_become_an_operator(logins: dict[str, psycopg.Connection[Any]]) -> None:
    assert attempt(logins["w"], "SET ROLE osgprod_operator") == "refused"
    assert attempt(logins["o"], "SET ROLE osgprod_worker") == "refused"


def test_the_shims_login_can_invent_bearer_claims_for_projects_that_accept_tokens_and_for_no_others(
    world: World, logins: dict[str, psycopg.Connection[Any]]
) -> None:
    """The shim checks signatures, the database believes its login: docs/security.md says so."""
    world.add_file(2)
    claims = Jsonb({"iss": "https://issuer", "scope": "osgprod.work", "exp": 4102444800})
    ask = "SELECT * FROM osgprod.checkout_slice('p', 1, %s, p_client => '127.0.0.1', p_bearer => %s)"
    with pytest.raises(psycopg.Error) as refused:
        logins["w"].execute(ask, [0, claims])
    assert refused.value.sqlstate == "OG206"
    world.set(bearer_issuer="https://issuer", bearer_scope="osgprod.work")
    row = logins["w"].execute(ask, [0, claims]).fetchone()
    assert row and row["status"] == "assigned"
    # A living attempt is as safe from this login as from any other caller.
    assert world.checkout(1, job_key="key")["status"] == "assigned"
    row = logins["w"].execute(ask, [1, claims]).fetchone()
    assert row and row["status"] == "wait"


def test_a_new_function_can_be_called_by_nobody_until_it_is_granted(
    db: psycopg.Connection[dict[str, Any]], logins: dict[str, psycopg.Connection[Any]]
) -> None:
    db.execute("SET ROLE osgprod_owner")
    db.execute("CREATE FUNCTION osgprod.forgotten() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    db.execute("RESET ROLE")
    for connection in logins.values():
        assert attempt(connection, "SELECT * FROM osgprod.forgotten()") == "refused"


SHADOWS = """
    CREATE TEMP TABLE projects (LIKE pg_catalog.pg_class);
    CREATE TEMP TABLE attempts (project_id int, cluster int, process int, nstart int, token_digest bytea);
    CREATE TEMP TABLE slices (project_id int);
    CREATE TEMP TABLE reports (project_id int);
    CREATE TEMP TABLE refusals (project_id int);
    CREATE TEMP TABLE worker_bans (project_id int);
    CREATE FUNCTION {0}.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$;
    CREATE FUNCTION {0}.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT 'infinity'::timestamptz $$;
    CREATE FUNCTION {0}.host(inet) RETURNS text LANGUAGE sql AS $$ SELECT '127.0.0.1' $$;
    CREATE FUNCTION {0}.gen_random_uuid() RETURNS uuid LANGUAGE sql
        AS $$ SELECT '00000000-0000-0000-0000-000000000000'::uuid $$;
    CREATE FUNCTION {0}.same(bytea, bytea) RETURNS boolean LANGUAGE sql AS $$ SELECT true $$;
    CREATE OPERATOR {0}.= (LEFTARG = bytea, RIGHTARG = bytea, PROCEDURE = {0}.same);
    CREATE DOMAIN {0}.uuid AS text;
"""


@pytest.mark.parametrize("schema", ["pg_temp", "public"])
def test_shadows_of_tables_functions_and_operators_change_nothing(
    world: World, logins: dict[str, psycopg.Connection[Any]], schema: str
) -> None:
    """An attacker with the shim's login makes a temporary projects table and a sha256(), and puts them first."""
    world.set(token_required=True, subnet_pattern="127.0.0.0/8")
    world.add_file(2)
    world.db.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")  # as it was before PostgreSQL 15
    shim = logins["w"]
    shim.execute(SHADOWS.format(schema))
    shim.execute("SET search_path = pg_temp, public, pg_catalog")
    job = {"project": "p", "cluster": 1, "process": 0, "client": "127.0.0.1"}
    with pytest.raises(psycopg.Error) as refused:
        call(shim, "checkout_slice", **job, magic="wrong")
    assert refused.value.sqlstate == "OG202"
    with pytest.raises(psycopg.Error) as refused:
        call(shim, "checkout_slice", **{**job, "client": "192.0.2.1"}, magic="m")
    assert refused.value.sqlstate == "OG201"
    answer = call(shim, "checkout_slice", **job, magic="m")[0]
    assert answer["status"] == "assigned"
    assert str(answer["token"]) != "00000000-0000-0000-0000-000000000000"
    report = call(shim, "report_exit", **job, magic="m", exitcode=0, token="wrong")[0]
    assert report["status"] == "refused"
    report = call(shim, "report_exit", **job, magic="m", exitcode=0, token=str(answer["token"]))[0]
    assert report["status"] == "done"
    assert world.progress()["blocks_done"] == 1
    for table in ("attempts", "slices", "reports", "refusals"):
        assert shim.execute(f"SELECT count(*) AS n FROM pg_temp.{table}").fetchone() == {"n": 0}


SETTINGS = """
    standard_conforming_strings = off
    transform_null_equals = on
    plan_cache_mode = force_generic_plan
    timezone = 'Pacific/Kiritimati'
    intervalstyle = 'sql_standard'
    bytea_output = 'escape'
    enable_indexscan = off
    lc_messages = 'C'
"""


def test_session_settings_give_no_more_rights(
    world: World, logins: dict[str, psycopg.Connection[Any]]
) -> None:
    world.set(token_required=True, subnet_pattern="10.%")
    world.add_file(20)
    shim = logins["w"]
    for process, setting in enumerate(SETTINGS.strip().splitlines()):
        shim.execute("RESET ALL")
        try:
            shim.execute(f"SET {setting}")
        except psycopg.Error:
            continue  # this server does not let it be set
        job = {"project": "p", "cluster": 1, "process": process}
        for wrong in ({"client": "10.0.0.1", "magic": "x"}, {"client": "11.0.0.1", "magic": "m"}):
            with pytest.raises(psycopg.Error) as refused:
                call(shim, "checkout_slice", **job, **wrong)
            assert refused.value.sqlstate in ("OG201", "OG202"), setting
        answer = call(shim, "checkout_slice", **job, client="10.0.0.1", magic="m")[0]
        report = {**job, "client": "10.0.0.1", "magic": "m", "exitcode": 0}
        assert call(shim, "report_exit", **report)[0]["status"] == "refused", setting
        assert call(shim, "report_exit", **report, token=str(answer["token"]))[0]["status"] == "done", setting


def test_the_shim_sees_no_other_sessions_statement(
    world: World, logins: dict[str, psycopg.Connection[Any]]
) -> None:
    with connect(world.dsn) as other:
        other.execute("SELECT 'a statement of the administrator'")
        rows = logins["w"].execute("SELECT query FROM pg_stat_activity WHERE usename = 'postgres'").fetchall()
    assert rows and all("administrator" not in (row["query"] or "") for row in rows)
