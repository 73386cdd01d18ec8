-- What the benchmarks add to a migrated database: the bounds' own tables, and quick ways to fill the product's.
CREATE SCHEMA bench;
GRANT USAGE ON SCHEMA bench TO osgprod_worker;

-- The bound of SQL: rows that are updated by key. Half of each page is free, so that every update is a HOT one.
CREATE TABLE bench.counters (counter_id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO bench.counters SELECT g, 0 FROM generate_series(1, 100000) g;
GRANT SELECT, UPDATE ON bench.counters TO osgprod_worker;

-- What PL/pgSQL alone can do: the rows that a pair writes, with all their keys, by functions that decide nothing.
CREATE TABLE bench.slices (LIKE osgprod_data.slices INCLUDING ALL);
ALTER TABLE bench.slices SET (fillfactor = 75), ADD CONSTRAINT slices_follow_a_slice
    FOREIGN KEY (project_id, rawdata_id, follows) REFERENCES bench.slices (project_id, rawdata_id, block2);
CREATE TABLE bench.attempts (LIKE osgprod_data.attempts INCLUDING ALL);
CREATE TABLE bench.reports (LIKE osgprod_data.reports INCLUDING ALL);

CREATE FUNCTION bench.write_checkout(p_cluster bigint, p_process bigint) RETURNS TABLE (token uuid)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, bench, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- The rows of a checkout: block p_process [1 ..] of a file that nobody else has.
BEGIN
    token := gen_random_uuid();
    INSERT INTO slices (project_id, rawdata_id, block1, block2, follows, run, seqno, cluster, process, nstart, opened_at,
           due_at)
    VALUES (1, p_cluster, p_process, p_process + 1, nullif(p_process, 1), 1, 1, p_cluster, p_process, 1, clock_timestamp(),
           clock_timestamp() + interval '6 hours');
    INSERT INTO attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, opened_at, cpus, started_at,
           token_digest, client)
    VALUES (1, p_cluster, p_process, 1, p_cluster, p_process, p_process + 1, now(), 1, now(),
           sha256(convert_to(token::text, 'UTF8')), '127.0.0.1');
    RETURN NEXT;
END
$fn$;

CREATE FUNCTION bench.write_report(p_cluster bigint, p_process bigint, p_token uuid) RETURNS TABLE (status text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, bench, pg_temp
    SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $fn$
-- The rows of a report on that block.
BEGIN
    UPDATE slices s SET state = 'done' WHERE s.project_id = 1 AND s.rawdata_id = p_cluster AND s.block1 = p_process;
    INSERT INTO reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code, reported_at, ran_s, nblocks,
           worker)
    VALUES (1, p_cluster, p_process, 1, true, 'done', 0, clock_timestamp(), 0, 1, '127.0.0.1');
    status := 'done';
    RETURN NEXT;
END
$fn$;
GRANT EXECUTE ON FUNCTION bench.write_checkout, bench.write_report TO osgprod_worker;

-- The bound of HTTP: a function that inserts one row.
CREATE TABLE bench.lines (line_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, client text, written_at timestamptz);
CREATE FUNCTION bench.insert_line(p_client text) RETURNS TABLE (line_id bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, bench, pg_temp
AS $fn$
    INSERT INTO bench.lines AS l (client, written_at) VALUES (p_client, now()) RETURNING l.line_id
$fn$;
GRANT EXECUTE ON FUNCTION bench.insert_line TO osgprod_worker;

CREATE FUNCTION bench.add_files(p_run int, p_files int, p_nblocks int) RETURNS void LANGUAGE sql
AS $fn$
    -- Registers files of blocks of 1,000,000 bytes and 100 events, 100 files a run, as copies of one.
    -- Parameters: p_run  of the first file;  p_files  how many;  p_nblocks  of each, block 0 not counted
    WITH block_index AS (
        SELECT string_agg(int8send(g * 1000000::bigint) || int4send(g * 100), '' ORDER BY g) AS bytes
          FROM generate_series(0, p_nblocks + 1) g
    )
    INSERT INTO osgprod_data.rawdata (path, run, seqno, size_bytes, nblocks, first_block, byte_order,
           has_trailer, last_has_bit, trailer, preamble, lead1, lead2, block_index)
    SELECT format('/dcache/halld/rawdata/run%s/hd_rawdata_%s_%s.evio', lpad((p_run + g / 100)::text, 6, '0'),
                  lpad((p_run + g / 100)::text, 6, '0'), lpad((g % 100)::text, 3, '0')),
           p_run + g / 100, g % 100, (p_nblocks + 1) * 1000000::bigint + 32, p_nblocks + 1, 1, 'big', true, false,
           decode(repeat('00', 32), 'hex'), p.preamble, osgprod._lead(p.preamble, 1, 1000000),
           osgprod._lead(p.preamble, 2, NULL), i.bytes
      FROM generate_series(0, p_files - 1) g, block_index i,
           (SELECT '[{"from_block": 1, "offset": 0, "bytes": 1000000, "events": 1}]'::jsonb AS preamble) p
$fn$;

CREATE FUNCTION bench.add_finished(p_project text, p_what text, p_files int) RETURNS void LANGUAGE plpgsql
AS $fn$
-- Makes the first files of a project finished: each block of it a slice that was done at its first attempt.
-- Parameters: p_project  whose files are all pending;  p_files  how many of them
--             p_what     slices, attempts, reports or files: a call for each, so that they can be made side by side
DECLARE
    v_project_id int := (SELECT p.project_id FROM osgprod_data.projects p WHERE p.name = p_project);
BEGIN
    SET LOCAL session_replication_role = replica;  -- the foreign keys hold by construction, verify() checks them
    CREATE TEMPORARY TABLE chosen ON COMMIT DROP AS
        SELECT l.rawdata_id, l.run, l.seqno, l.block1, l.block2 FROM osgprod_data.loaded_files l WHERE l.project_id = v_project_id
         ORDER BY l.run, l.seqno LIMIT p_files;
    ANALYZE chosen;
    CASE p_what
    WHEN 'files' THEN
        UPDATE osgprod_data.loaded_files l SET state = 'complete' FROM chosen c
         WHERE l.project_id = v_project_id AND l.rawdata_id = c.rawdata_id;
    WHEN 'slices' THEN
        INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, state, cluster, process,
               nstart, opened_at, due_at)
        SELECT v_project_id, c.rawdata_id, b, b + 1, nullif(b, c.block1), c.run, c.seqno, 'done', c.rawdata_id, b, 1, now(),
               now()
          FROM chosen c, generate_series(c.block1, c.block2 - 1) b;
    WHEN 'attempts' THEN
        INSERT INTO osgprod_data.attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2,
               opened_at, cpus, started_at, token_digest, client)
        SELECT v_project_id, c.rawdata_id, b, 1, c.rawdata_id, b, b + 1, now(), 1, now(), sha256('x'), '127.0.0.1'
          FROM chosen c, generate_series(c.block1, c.block2 - 1) b;
    WHEN 'reports' THEN
        INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code,
               reported_at, ran_s, nblocks, worker)
        SELECT v_project_id, c.rawdata_id, b, 1, true, 'done', 0, now(), 3600, 1, '127.0.0.1'
          FROM chosen c, generate_series(c.block1, c.block2 - 1) b;
    END CASE;
END
$fn$;

-- The bound of load_slices: a copy of the table, emptied before each round.
CREATE TABLE bench.loaded_files (LIKE osgprod_data.loaded_files INCLUDING ALL);
ALTER TABLE bench.loaded_files ADD FOREIGN KEY (project_id) REFERENCES osgprod_data.projects,
    ADD FOREIGN KEY (rawdata_id) REFERENCES osgprod_data.rawdata;

CREATE FUNCTION bench.insert_loaded_files() RETURNS bigint LANGUAGE sql
AS $fn$
    WITH loaded AS (
        INSERT INTO bench.loaded_files (project_id, rawdata_id, run, seqno, block1, block2)
        SELECT 1, r.rawdata_id, r.run, r.seqno, r.first_block, r.nblocks FROM osgprod_data.rawdata r
        RETURNING 1
    )
    SELECT count(*) FROM loaded
$fn$;

CREATE FUNCTION bench.hot_updates(OUT updates bigint, OUT hot bigint, OUT rows bigint, OUT bytes_per_row float8)
LANGUAGE plpgsql
AS $fn$
-- Tells of all that was done with slices since the database was made: updates, how many of them HOT, rows, and bytes of
-- the table without indexes for each row.
BEGIN
    PERFORM pg_stat_force_next_flush();
    SELECT t.n_tup_upd, t.n_tup_hot_upd INTO updates, hot FROM pg_stat_user_tables t
     WHERE t.relid = 'osgprod_data.slices'::regclass;
    SELECT count(*), pg_table_size('osgprod_data.slices')::float8 / count(*) INTO rows, bytes_per_row
      FROM osgprod_data.slices;
END
$fn$;
