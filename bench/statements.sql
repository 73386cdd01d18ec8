\set process :process + 1
\set cluster :cluster0 + :client_id
SELECT * FROM bench.state_checkout(p_cluster => :cluster, p_process => :process) \gset
SELECT * FROM bench.state_report(p_cluster => :cluster, p_process => :process, p_token => :token);
