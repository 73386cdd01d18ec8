SELECT array_agg(r.msg_id) AS ids FROM pgmq.read('bench', 3600, 16) r \gset
SELECT count(*) FROM pgmq.archive('bench', :ids::bigint[]);
