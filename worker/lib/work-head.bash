#!/usr/bin/env bash
#
# osgprod_work.bash: processes one slice of a raw data file. The server fills in the lines below for the job that
# asks; copy this file to DOCUMENT_ROOT/PROJECT/ and change what you like. It also runs by hand on a whole file:
#     bash osgprod_work.bash hd_rawdata_001234_000.evio
#
# ncpus:
# cluster:
# process:
# nstarts:
# project:
# source:
# started:
#
# Runs in the current folder, where the outputs are left. Environment:
#     OSGPROD_RECON   the reconstruction command, words separated by spaces; default see "settings"
#     OSGPROD_REPORT  file for what shall be told with the exit report [osgprod_report.txt]
#     OSGPROD_TRIES   how often a range is asked for without getting a byte [8]
#     OSGPROD_BACKOFF_MS  pause after the first of these; doubled each time, up to 32 fold [ms; 1000]
#     OSGPROD_TOKEN_HOSTS  hosts that storage may redirect to with the bearer token, separated by spaces
#     BEARER_TOKEN, BEARER_TOKEN_FILE, X509_USER_PROXY  what storage may want to see
# Exit codes: those of the reconstruction (128 + n = killed by signal n: the node's fault); 75 = the slice could not
# be fetched (the site's fault); 64 = nothing to do was filled in; 40 = a setting is wrong, the log names it.
#
# Made of: its parts

#input_eviofile_list="root://xrootd.server.dns/path/to/file.evio ..."
#output_filename="file.evio"
#osgprod_token=of this attempt, for heartbeats and the report
#osgprod_source_url=of the whole file
#osgprod_size_bytes=of the slice as a file of its own
#osgprod_events=that the slice holds
#osgprod_pieces=byte ranges of the file, and literal bytes, whose concatenation is the slice
