#!/usr/bin/env bash
#
# osgprod_merge.bash: merges the outputs of a raw data file's slices, and delivers one file of each kind.
# The server fills in the lines below for the job that asks. Copy this file to DOCUMENT_ROOT/PROJECT/ and change its table
# of kinds. docs/merging.md tells more.
# Made of: (make scripts fills this in)
#
# ncpus:
# cluster:
# process:
# nstarts:
# project:
# source:
# started:
#
# Environment:
#     OSGPROD_HADD         command that merges ROOT files: it gets the output and the inputs as arguments [hadd -f -v 1]
#     OSGPROD_HDDMCAT      command that joins HDDM files: it gets the inputs, and prints the output [hddmcat]
#     OSGPROD_PYTHON       Python 3.6 or later, for EVIO files, compressed HDDM files, and to count events [python3]
#     OSGPROD_OUTPUT_URL   where the project has no merge_output_url, merged files go to the folder OSGPROD_PROJECT in this
#                          one [none]
#     OSGPROD_REPORT       file for what the exit report should tell [osgprod_report.txt]
#     OSGPROD_TRIES        attempts of a transfer, 1 to 1000 [8]
#     OSGPROD_BACKOFF_MS   pause after the first of these, doubled each time up to 32 fold, 1 to 600000 [ms; 1000]
#     OSGPROD_TOKEN_HOSTS  hosts that may see the credentials, beside those that OSGPROD_URL, OSGPROD_OUTPUT_URL and the
#                          server name: host or host:port, separated by spaces [none]
#     BEARER_TOKEN, BEARER_TOKEN_FILE, X509_USER_PROXY, X509_CERT_DIR  credentials, and authorities to trust
# Exit codes: 0 = merged and delivered; 65 = inputs are bad, bad_inputs in the report names them; 66 = the result is not
# what it must be; 74 = not delivered; 75 = this node can't do it; 127 = a program is missing on this node; 40 = a setting
# is wrong; 64 = no merge is filled in (by hand; 40 in a job).

#osgprod_task=slice or merge
#osgprod_inputs=an array, an input each: URL BYTES ADLER32 BLOCK1 BLOCK2, in the order of blocks; - = unknown
#osgprod_run=number of the run
#osgprod_seqno=number of the file in its run; empty = the whole run is merged
#osgprod_merge_output_url=folder for the merged files; {kind} stands for the kind
#osgprod_token_hosts=hosts of the project's settings, which may see the credentials
#osgprod_merge_cleanup=keep or delete the inputs when the merge is done
#osgprod_ncpus=cores that the job has
#osgprod_token=of this attempt
#osgprod_lease_s=how long the lease lasts without a heartbeat
