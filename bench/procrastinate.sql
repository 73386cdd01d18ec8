SELECT (procrastinate_fetch_job_v2(NULL, 1)).id AS job \gset
SELECT procrastinate_finish_job_v1(:job, 'succeeded', false);
