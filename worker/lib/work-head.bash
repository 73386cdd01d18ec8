#!/usr/bin/env bash
#
# osgprod_work.bash: fetches one slice of a raw data file, reconstructs it, and leaves the outputs in the current folder.
# The server fills in the lines below for the job that asks. Copy this file to DOCUMENT_ROOT/PROJECT/ and change its
# settings. It also runs by hand on a whole file:
#     bash osgprod_work.bash hd_rawdata_001234_000.evio
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
# Environment (docs/workscripts.md tells more):
#     OSGPROD_RECON        the reconstruction command, words separated by spaces [see "settings"]
#     OSGPROD_REPORT       file for what the exit report should tell [osgprod_report.txt]
#     OSGPROD_TRIES        how many attempts in a row may bring no byte of a range, 1 to 1000 [8]
#     OSGPROD_BACKOFF_MS   pause after the first of these, doubled each time up to 32 fold, 1 to 600000 [ms; 1000]
#     OSGPROD_TOKEN_HOSTS  hosts that may see the credentials, beside those of the source's URLs, OSGPROD_URL and
#                          OSGPROD_OUTPUT_URL: host or host:port, separated by spaces [none]
#     BEARER_TOKEN, BEARER_TOKEN_FILE, X509_USER_PROXY, X509_CERT_DIR  credentials, and authorities to trust
# Exit codes: 75 = this node can't do it (the slice was not fetched whole, or the disk is full); 40 = a setting or the
# source's URL is wrong; 64 = no slice is filled in (by hand; 40 in a job); every other code is that of the reconstruction (128 + n = signal n).

#input_eviofile_list="root://xrootd.server.dns/path/to/file.evio ..."
#output_filename="file.evio"
#osgprod_ncpus=cores that the job has
#osgprod_token=of this attempt, for heartbeats and the report
#osgprod_source_url=of the whole file
#osgprod_source_urls=all URLs of it, the preferred one first
#osgprod_size_bytes=of the slice as a separate file
#osgprod_events=that the slice holds
#osgprod_pieces=byte ranges of the file, and literal bytes, whose concatenation is the slice
