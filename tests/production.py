"""A production in full swing, put into the tables by SQL: as large as wished, in seconds.

Files are finished in order, some are in flight, the others untouched; attempts and reports fit the slices, so that
verify() finds nothing.
"""

from __future__ import annotations

from typing import Any

import psycopg

SITES = ("SITE_A", "SITE_B", "SITE_C", "SITE_D", "SITE_E", "SITE_F")

# :params are psycopg's; blocks are 1000 bytes and 10 events.
_FILES = """
WITH files AS (
    INSERT INTO osgprod_data.rawdata (run, seqno, path, size_bytes, nblocks, first_block, byte_order,
           has_trailer, last_has_bit, trailer, preamble, block_index, events)
    SELECT r.run, f, format('/data/RunPeriod-2026-01/Run%%s/hd_rawdata_%%s_%%s.evio', to_char(r.run, 'FM000000'),
           to_char(r.run, 'FM000000'), to_char(f, 'FM000')),
           20000000000, %(blocks)s + 1, 1, 'big', true, false, decode(repeat('00', 32), 'hex'), '[]',
           decode(repeat('00', 12 * (%(blocks)s + 2)), 'hex'), 40 * %(blocks)s
      FROM (SELECT n, 71001 + 3 * n AS run FROM generate_series(0, %(runs)s - 1) AS n) r
     CROSS JOIN LATERAL generate_series(0, %(files)s - 1 - (r.n * 7) %% (%(files)s / 2 + 1)) AS f
     ORDER BY r.run, f
    RETURNING rawdata_id, run, seqno
), placed AS (
    SELECT f.*, row_number() OVER (ORDER BY f.run, f.seqno) AS place FROM files f
)
INSERT INTO osgprod_data.loaded_files (project_id, rawdata_id, run, seqno, block1, block2, state, loaded_at)
SELECT p.project_id, f.rawdata_id, f.run, f.seqno, 1, %(blocks)s + 1,
       CASE WHEN f.place <= %(finished)s THEN 'complete' WHEN f.place <= %(finished)s + %(in_flight)s THEN 'allocated'
            ELSE 'pending' END::osgprod_data.file_state, now() - interval '9 days'
  FROM placed f, osgprod_data.projects p WHERE p.name = %(project)s
"""
# In flight: every ninth slice is leased, and one in 23 was requeued.
_SLICES = """
INSERT INTO osgprod_data.slices (project_id, rawdata_id, block1, block2, follows, run, seqno, state, is_ready,
       not_before, failures, cluster, process, nstart, opened_at, due_at, progress_at, bytes_fetched, cpu_s)
SELECT f.project_id, f.rawdata_id, 1 + %(a_slice)s * n, least(1 + %(a_slice)s * (n + 1), f.block2),
       CASE WHEN n > 0 THEN 1 + %(a_slice)s * n END, f.run, f.seqno, x.state,
       CASE WHEN x.state = 'ready' THEN true END, CASE WHEN x.state = 'ready' THEN now() - interval '1 s' END,
       (f.state <> 'complete' AND n %% 23 = 7)::int, 4700 + f.rawdata_id / 1000, 100000 * (f.rawdata_id %% 1000) + n, 1,
       now() - interval '2 h', now() + interval '1 s' * (3000 + (n * 97) %% 18000),
       now() - interval '1 s' * ((n * 31) %% 900), 20000000 * (n %% 90 + 1), 60 * (n %% 50 + 1)
  FROM osgprod_data.loaded_files f
  JOIN osgprod_data.projects p ON p.project_id = f.project_id AND p.name = %(project)s
 CROSS JOIN LATERAL generate_series(0, (f.block2 - 2) / %(a_slice)s) AS n
 CROSS JOIN LATERAL (
    SELECT CASE WHEN f.state = 'complete' THEN 'done' WHEN n %% 9 = 4 THEN 'leased' WHEN n %% 23 = 7 THEN 'ready'
                ELSE 'done' END::osgprod_data.slice_state AS state) x
 WHERE f.state <> 'pending'
"""
# Only of the last slices: history that nobody looks at needs no rows to be measured. A worker is one of 400.
_ATTEMPTS = """
INSERT INTO osgprod_data.attempts (project_id, cluster, process, nstart, rawdata_id, block1, block2, cpus, opened_at,
       started_at, token_digest, client, host, site)
SELECT s.project_id, s.cluster, s.process, s.nstart, s.rawdata_id, s.block1, s.block2, 8, s.opened_at,
       now() - interval '1 s' * (600 + %(window_s)s * (1 - percent_rank() OVER (ORDER BY s.rawdata_id, s.block1))),
       decode(repeat('00', 32), 'hex'), inet '10.0.0.0' + w.n, 'wn' || w.n, (%(sites)s::text[])[1 + w.n %% 6]
  FROM (SELECT x.* FROM osgprod_data.slices x
          JOIN osgprod_data.projects p ON p.project_id = x.project_id AND p.name = %(project)s
         ORDER BY x.rawdata_id DESC, x.block1 DESC LIMIT %(attempts)s) s
 CROSS JOIN LATERAL (SELECT (s.process::bigint * 7919 %% 20) * (s.process::bigint * 104729 %% 20) AS n) w
 ORDER BY 10
"""
_REPORTS = """
INSERT INTO osgprod_data.reports (project_id, cluster, process, nstart, by_worker, outcome, exit_code, reported_at,
       ran_s, nblocks, worker, site, events, outputs, output_bytes, reason)
SELECT a.project_id, a.cluster, a.process, a.nstart, true, o.outcome::osgprod_data.outcome,
       CASE o.outcome WHEN 'done' THEN 0 WHEN 'node-fault' THEN 137 ELSE 1 + a.process %% 2 * 5 END,
       a.started_at + interval '1 s' * t.s, t.s, a.block2 - a.block1, a.host || '@' || host(a.client), a.site,
       10 * (a.block2 - a.block1) + 1, 2, 31000000,
       CASE o.outcome WHEN 'failed' THEN 'JException: no BOR record for crate 12' END
  FROM osgprod_data.attempts a
  JOIN osgprod_data.slices s ON s.project_id = a.project_id AND s.rawdata_id = a.rawdata_id AND s.block1 = a.block1
  JOIN osgprod_data.projects p ON p.project_id = s.project_id AND p.name = %(project)s
 CROSS JOIN LATERAL (SELECT CASE WHEN s.state = 'done' THEN 'done' WHEN a.process %% 3 = 0 THEN 'node-fault'
                                 ELSE 'failed' END AS outcome) o
 CROSS JOIN LATERAL (SELECT (200 + (a.client - inet '10.0.0.0') + a.process %% 150)::int AS s) t
 WHERE s.state <> 'leased'
 ORDER BY a.started_at
"""


def fill(
    db: psycopg.Connection[dict[str, Any]],
    project: str,
    runs: int = 36,
    files: int = 60,
    blocks: int = 200,
    a_slice: int = 10,
    finished: float = 0.6,
    in_flight: int = 20,
    attempts: int = 6000,
    window_s: float = 20 * 3600,
) -> None:
    """Gives a project, made before, its files, slices, attempts and reports.

    Parameters
    ----------
    runs, files
        Of a run at most.
    blocks, a_slice
        Of a file and of a slice.
    finished : float
        Share of the files that are.
    in_flight : int
        Files that come next.
    attempts : int
        On record, of the last slices.
    window_s : float
        In which they began [s].
    """
    values = {
        "project": project, "runs": runs, "files": files, "blocks": blocks, "a_slice": a_slice,
        "in_flight": in_flight, "attempts": attempts, "window_s": window_s, "sites": list(SITES),
    }  # fmt: skip
    total = sum(files - (r * 7) % (files // 2 + 1) for r in range(runs))
    db.execute(_FILES, {**values, "finished": round(total * finished)})
    db.execute(_SLICES, values)
    db.execute(_ATTEMPTS, values)
    db.execute(_REPORTS, values)
    for table in ("rawdata", "loaded_files", "slices", "attempts", "reports"):
        db.execute(f"ANALYZE osgprod_data.{table}")
