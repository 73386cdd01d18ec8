\set process :process + 1
\set cluster :cluster0 + :client_id
SELECT * FROM osgprod.checkout_slice(p_project => :project, p_cluster => :cluster, p_process => :process, p_cpus => 1, p_magic => 'm', p_client => '127.0.0.1', p_workscript => 'osgprod_work.bash', p_templates => jsonb_build_object('osgprod_work.bash', :digest::text)) \gset
SELECT * FROM osgprod.report_exit(p_project => :project, p_cluster => :cluster, p_process => :process, p_exitcode => 0, p_magic => 'm', p_client => '127.0.0.1', p_token => :token);
