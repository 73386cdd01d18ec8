#!/bin/bash
#
# osgprod_exec.sh <cluster> <process> [<ncpus>]: runs around the work: asks the server for a work script, runs it, beats
# meanwhile, gathers the outputs into job_<cluster>_<process>.tar.gz, sends them, and reports how it ended.
# Runs on grid nodes that nobody here controls: bash 4.2, curl 7.29, nothing else is taken for granted. (/bin/bash, since
# "env bash" finds none where PATH is empty.)
#
# Environment (osgprod.sub sets it):
#     OSGPROD_URL         the server, like https://host/osgprod
#     OSGPROD_PROJECT     the project
#     OSGPROD_MAGIC       its secret; or OSGPROD_MAGIC_FILE, a file that holds it; without both a bearer token is sent
#     OSGPROD_OUTPUT_URL  folder for the tarball: http(s)://, root://, osdf://, pelican://, file:// or a path; unset = it
#                         stays here for HTCondor
#     OSGPROD_CONTAINER   command before the work script, like "apptainer exec image.sif"
#     OSGPROD_TRIES       how often a request, or an upload, is tried at most [10]
#     OSGPROD_BACKOFF_MS  pause after the first of these; doubled each time, up to 64 fold [ms; 1000]
#     OSGPROD_MAX_WAIT_S  how long to wait when work may come back [s; 600]; 0 = end at once, as when there is none
#     OSGPROD_SITE        name of the site, for the record [the one that HTCondor's machine ad tells]
#     OSGPROD_TOKEN_HOSTS hosts that storage may redirect to with the bearer token, like "door2.site.org pool.site.org:8443"
#     BEARER_TOKEN ...    see find_token
# The tarball of a job's nth start, n > 1, is job_<cluster>_<process>.<n>.tar.gz; that of a failed one failed_job_...
# Exit codes, for HTCondor (osgprod.sub says what becomes of the job): 0 done, or nothing to do; 10 the slice failed, maybe
# its data; 20 this node's fault; 30 the server or the storage is away, or all work is out; 40 refused or misconfigured;
# 143 told to stop by SIGTERM (nothing reported, the restarted job gets its slice back).
#
# Made of: its parts
