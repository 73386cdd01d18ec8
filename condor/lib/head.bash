#!/bin/bash -p
#
# osgprod_exec.sh <cluster> <process> [<ncpus>]: runs a slice, or several. For each it asks the server for a work script,
# runs the script while it sends heartbeats, packs the outputs into job_<cluster>_<process>.tar.gz, delivers them, and
# reports the exit code.
# It runs on grid nodes that nobody here controls: it needs bash 4.2, curl 7.29, tar and gzip. (/bin/bash, since
# "env bash" finds none where PATH is empty. -p: functions, BASH_ENV and options of the shell that the node's environment
# has would change what these commands do.)
#
# Environment (osgprod.sub sets it):
#     OSGPROD_URL         the server, like https://host/osgprod
#     OSGPROD_PROJECT     the project
#     OSGPROD_MAGIC       its secret; or OSGPROD_MAGIC_FILE, a file that holds it: line ends at its end don't count.
#                         Without both a bearer token is sent
#     OSGPROD_JOB_KEY     a random word that the job keeps over restarts: it proves to the server that it is the same job
#     OSGPROD_OUTPUT_URL  folder for the tarball; default: it stays here for HTCondor. Schemes: http, https, dav, davs,
#                         root, roots, xroot, xroots, osdf, pelican, file:///, or an absolute path
#     OSGPROD_CONTAINER   command before the work script, like "apptainer exec image.sif"; {} stands for the folder that
#                         must be visible in the container at the same path, and to which the command must change
#     OSGPROD_SLICES      how many slices the job processes at most, one after the other [1 to 100000; default 1]
#     OSGPROD_TRIES       attempts of a request, or of a delivery [1 to 1000; default 10]
#     OSGPROD_BACKOFF_MS  pause after the first attempt; doubled each time, up to 32 fold [ms, 1 to 600000; default 1000]
#     OSGPROD_MAX_WAIT_S  how long to wait when work may be requeued [s, 0 to 604800; default 600]; 0 = end at once, as
#                         when no work is left
#     OSGPROD_TIME_LEFT_S how long the job may run since HTCondor started it here, if the ads don't say it, or say more [s,
#                         0 to 999999999]
#     OSGPROD_MAX_LOG_BYTES  how much of the work's output to print, of all slices in sum: the head and the tail for
#                         each [bytes, 0 to 999999999; default 10000000]
#     OSGPROD_CHECKPOINT_CODE  exit code with which HTCondor saves this folder and starts the job again in it: for a
#                         tarball that could not be delivered, or that must be safe before its report [3 to 125,
#                         but not 10, 20, 30 or 40; default 0 = none]
#     OSGPROD_SITE        name of the site, for the record [default: the one in HTCondor's machine ad]
#     OSGPROD_TOKEN_HOSTS hosts that may see the job's credentials, like "door2.site.org pool.site.org:8443", beside those that
#                         OSGPROD_URL, OSGPROD_OUTPUT_URL and the project's settings name [default: none]
#     BEARER_TOKEN ...    see find_token
# HTCondor's job ad says which access point the job comes from, and when it was submitted there. The server gives no more
# work than fits until the job must end: by GLIDEIN_ToDie of the machine ad (else GLIDEIN_ToRetire), AllowedJobDuration,
# AllowedExecuteDuration or OSGPROD_TIME_LEFT_S, whichever comes first. When nothing fits, the job ends with 0.
#
# The tarball of a job's nth attempt, n > 1, is job_<cluster>_<process>.<n>.tar.gz; that of a failed one failed_job_...
# Each start on a slice is an attempt. Delivered, its name also tells the job's queue:
# job_<cluster>_<process>.<access point>.<time of submission>.tar.gz.
# A name in this folder that another job's file has gets a random word in front of .tar.gz.
# Until the server has accepted the report it is called unreported_job_<cluster>_<process>.<project>.tar.gz, with a file
# .report beside it: a job that
# starts again in the same folder delivers and reports it, and computes nothing. What counts is what the server lists.
#
# With OSGPROD_SLICES the job asks for another slice after each success. Without OSGPROD_OUTPUT_URL it ends with
# OSGPROD_CHECKPOINT_CODE before it reports a success: HTCondor saves the tarball, and the job goes on. An eviction, or a
# machine that is lost while the tarball comes home, then loses no tarball of a slice that the server calls done. Without
# OSGPROD_OUTPUT_URL a job of HTCondor that starts again after its slice was completed ends with 40, unless its tarball
# is here.
#
# Exit codes, for HTCondor (osgprod.sub says what becomes of the job): 0 done, or nothing to do; 10 the slice failed, maybe
# its data, or another attempt was faster; 20 this node's fault; 30 the server or the storage is away, or no work yet; 40 refused or misconfigured,
# or a tarball may be lost; 143 stopped by a signal (nothing reported, the restarted job gets its slice back). Of several slices the last one decides,
# except that a job that has processed a slice and gets no other, for any reason, ends with 0.
#
# A job that is killed by SIGKILL before its heartbeats begin leaves its folder, osgprod.<12 hexadecimal digits>. HTCondor removes it with
# the job's own folder.
#
# Made of: its parts
