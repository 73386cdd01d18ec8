\set one random(1, 100000)
\set other random(1, 100000)
UPDATE bench.counters SET n = n + 1 WHERE counter_id = :one;
UPDATE bench.counters SET n = n + 1 WHERE counter_id = :other;
