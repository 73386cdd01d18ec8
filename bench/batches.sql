\set first :first + 16
\set cluster :cluster0 + :client_id
SELECT json_agg(json_build_object('n', c.n, 'project', 'p', 'cluster', :cluster::bigint, 'process', :first::int + c.n, 'magic', 'm', 'client', '127.0.0.1', 'exitcode', 0, 'token', c.token)) AS reports FROM osgprod.checkout_slices(p_calls => (SELECT json_agg(json_build_object('n', g, 'project', 'p', 'cluster', :cluster::bigint, 'process', :first::int + g, 'cpus', 1, 'magic', 'm', 'client', '127.0.0.1', 'workscript', 'osgprod_work.bash', 'templates', json_build_object('osgprod_work.bash', :digest::text))) FROM generate_series(0, 15) g)) c \gset
SELECT count(*) FROM osgprod.report_exits(p_calls => :reports::json) r WHERE r.status = 'done';
